"""The command that says what SCOPE has to work on in a run's data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scope_megatron.config import ConfigError
from scope_megatron.instruments.commands.common import user_errors


def diagnose(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="output_dir of a run, live or not")],
) -> None:
    """Say what SCOPE has to work on in a run's data: perplexities by path, effective sample sizes,
    groups of one path, rank correlations of the teacher's perplexity; one line of advice."""
    with user_errors():
        if not run.is_dir():
            raise ConfigError(f"RUN: {run} is no directory; give the output_dir of a run")
        from scope_megatron.instruments.report.fit import measure_fit

        for line in measure_fit(run).lines():
            print(line)
