"""The command line: validate first, and only then import torch.

A wrong setting ends in one line on stderr and exit code 2, long before a model is loaded.
"""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer

from scope_megatron.config import ConfigError, load_config, validating_for
from scope_megatron.config.names import pinned
from scope_megatron.exits import USAGE
from scope_megatron.instruments.commands.common import (
    launch_again,
    must_launch,
    print_warnings,
    settle_device,
    user_errors,
)
from scope_megatron.instruments.commands.diagnosis import diagnose
from scope_megatron.instruments.commands.evaluation import compare, evaluate, regrade
from scope_megatron.instruments.commands.planning import plan
from scope_megatron.instruments.commands.view import view
from scope_megatron.instruments.plan.warning import gpu_of, memory_warning
from scope_megatron.job.lock import require_free
from scope_megatron.machine import choose

app = typer.Typer(
    name="scope-megatron",
    help="On-policy distillation with SCOPE on Megatron-core and vLLM.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file of the run")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="settings that replace the file's"),
]


@app.command()
def train(config: ConfigPath, overrides: Overrides = None) -> None:
    """Train; starts one process per rank itself unless torchrun or Slurm already did."""
    with user_errors():
        settings = load_config(config, overrides or [])
        print_warnings(settings)
        if "RANK" not in os.environ:  # a rank would find its own run's lock
            require_free(settings.output_dir)
        chosen = settings.platform
        settle_device(chosen.device, settings.parallel.tensor, chosen.deterministic)
        if must_launch(settings.world_size):
            arguments = [str(config), *(overrides or []), *pinned(settings)]
            launch_again(["train", *arguments], settings.world_size, settings.faults.restarts)
        from scope_megatron.instruments.report.draw import draw_report
        from scope_megatron.train.run import run

        sys.exit(run(settings, draw_report))


app.command()(evaluate)
app.command()(regrade)
app.command()(compare)
app.command()(plan)
app.command()(view)
app.command()(diagnose)


@app.command()
def check(
    config: ConfigPath,
    overrides: Overrides = None,
    gpus_per_node: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="validate for machines of N GPUs (0: none), not for this",
        ),
    ] = None,
    nodes: Annotated[
        int, typer.Option(min=1, metavar="M", help="so many of them; with --gpus-per-node")
    ] = 1,
    gpu: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="their kind, as h100: warn when the run will not fit"),
    ] = None,
) -> None:
    """Validate a configuration, list every problem, print the resolved settings."""
    if nodes > 1 and gpus_per_node is None:
        print("error: --nodes: needs --gpus-per-node; add --gpus-per-node N", file=sys.stderr)
        sys.exit(USAGE)
    elsewhere = nullcontext() if gpus_per_node is None else validating_for(gpus_per_node, nodes)
    try:
        with elsewhere:
            settings = load_config(config, overrides or [])
            warning = memory_warning(settings, gpu_of(choose(settings.platform.device), gpu))
    except ConfigError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        sys.exit(USAGE)
    if gpus_per_node is None:
        print(choose(settings.platform.device).line(), file=sys.stderr)
    print_warnings(settings)
    if warning:
        print(f"warning: {warning}", file=sys.stderr)
    print(settings.to_yaml(), end="")


@app.command()
def data(
    config: ConfigPath,
    overrides: Overrides = None,
    prompts: Annotated[
        int, typer.Option(min=0, help="prompts of each set to print as the model sees them")
    ] = 3,
) -> None:
    """Look at the data: rows, lengths, what is skipped and why, prompts with their tokens."""
    with user_errors():
        settings = load_config(config, overrides or [], command="data")
        from scope_megatron.data.preview import preview

        preview(settings, prompts)


@app.command()
def report(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="output_dir of a run")],
    step: Annotated[
        int | None,
        typer.Option(help="the step to draw as a time line; else the last one of the trace"),
    ] = None,
) -> None:
    """Draw the run's curves into RUN_DIR/report.png; where logging.trace wrote a trace, gather it
    in RUN_DIR/trace/trace.json and draw a step of it into RUN_DIR/timeline.png; write
    RUN_DIR/report.html, one file to send to someone: these, advice, settings, some responses.
    Print the advice, and what `diagnose` says."""
    with user_errors():
        if not run_dir.is_dir():
            raise ConfigError(f"RUN_DIR: {run_dir} is no directory; give the output_dir of a run")
        from scope_megatron.instruments.report.figure import write_report
        from scope_megatron.instruments.report.fit import fit_lines
        from scope_megatron.instruments.report.timeline import write_timeline
        from scope_megatron.instruments.report.webpage import write_html

        write_report(run_dir)
        if drawn := write_timeline(run_dir, step):
            print(f"time line: {drawn}")
        for advice in write_html(run_dir):
            print(advice.line())
        for line in fit_lines(run_dir):
            print(line)


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="print a JSON list instead")] = False,
) -> None:
    """Examine this machine: packages and their versions, GPUs, limits, collectives, Slurm.

    Exit code 1 when something that training needs does not work.
    """
    from scope_megatron.instruments.doctor import report_findings

    sys.exit(report_findings(as_json))


def _print_version(wanted: bool) -> None:
    if wanted:
        try:
            print(version("scope-megatron"))
        except PackageNotFoundError:
            print("not installed")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="print the version"),
    ] = False,
) -> None:
    """On-policy distillation with SCOPE on Megatron-core and vLLM."""


def main() -> None:
    """Entry point of the installed `scope-megatron` command."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # read when torch loads
    app(prog_name="scope-megatron")
