"""Write docs/configuration.md, the table of every configuration key, from the schema."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scope_megatron.config import reference_markdown


def main(
    output: Annotated[Path, typer.Argument(help="file to write")] = Path("docs/configuration.md"),
) -> None:
    """Write the reference page."""
    output.write_text(reference_markdown(), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
