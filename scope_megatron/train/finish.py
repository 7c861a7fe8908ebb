"""End of a run: export of the student to Hugging Face's format, drawing of the report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from scope_megatron import outputs
from scope_megatron.config import Config
from scope_megatron.convert.hf import export_hf
from scope_megatron.report.figure import write_report
from scope_megatron.report.timeline import write_timeline
from scope_megatron.report.webpage import write_html
from scope_megatron.train.trainer import Trainer


def export_student(config: Config, trainer: Trainer, say: Callable[[str], None]) -> bool:
    """Write ``output_dir/hf``, a Hugging Face directory (collective over all ranks).

    Returns whether it is there; a failure is told through ``say`` and raises nothing.
    """
    student, out = trainer.learner.student, config.output_dir / outputs.HF
    try:
        export_hf(
            student.model,
            student.hf,
            trainer.topology,
            config.model.student,
            out,
            overwrite=True,
        )
    except OSError as error:  # raised on all ranks together
        say(f"the student was not exported: {error}")
        return False
    say(f"student as Hugging Face directory: {out}")
    return True


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
