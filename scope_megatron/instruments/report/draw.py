"""Everything that is drawn of a run at its end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from scope_megatron.instruments.report.figure import write_report
from scope_megatron.instruments.report.timeline import write_timeline
from scope_megatron.instruments.report.webpage import write_html


def draw_report(output_dir: Path, say: Callable[[str], None]) -> Path | None:
    """Draw ``output_dir/report.png`` on this rank, and write report.html with it; None when the
    disk did not take them."""
    try:
        picture = write_report(output_dir)
    except OSError as error:
        say(f"the report was not drawn: {error}")
        return None
    try:
        write_timeline(output_dir)
        write_html(output_dir)
    except (OSError, ValueError) as error:  # also pyarrow's, of a file that cannot be read
        say(f"the report as a page was not written: {error}")
    return picture
