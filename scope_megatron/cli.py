"""The command line: validate first, and only then import torch.

A wrong setting ends in one line on stderr and exit code 2, long before a model is loaded.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, NoReturn, TextIO

import typer

from scope_megatron.config import Config, ConfigError, load_config, validating_for
from scope_megatron.exits import ENGINE, INTERRUPTED, LOST_RANK, USAGE, StopRun
from scope_megatron.job import LAUNCHER_VARIABLE
from scope_megatron.job.lock import require_free
from scope_megatron.machine import choose, settle

PACKAGE = Path(__file__).parent

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
        if "RANK" not in os.environ:  # a rank would find its own run's lock
            require_free(settings.output_dir)
        _settle(settings)
        if _must_launch(settings):
            _launch("train", config, overrides, settings)
        from scope_megatron.train.run import run

        sys.exit(run(settings))


@app.command()
def evaluate(config: ConfigPath, overrides: Overrides = None) -> None:
    """Avg@k and Pass@k of the student on data.eval."""
    with user_errors():
        settings = load_config(config, overrides or [], command="evaluate")
        _settle(settings, sys.stderr)  # the result alone goes to stdout
        if _must_launch(settings):
            _launch("evaluate", config, overrides, settings)
        from scope_megatron.train.run import evaluate_only as run

        sys.exit(run(settings))


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
) -> None:
    """Validate a configuration, list every problem, print the resolved settings."""
    if nodes > 1 and gpus_per_node is None:
        print("error: --nodes: needs --gpus-per-node; add --gpus-per-node N", file=sys.stderr)
        sys.exit(USAGE)
    elsewhere = nullcontext() if gpus_per_node is None else validating_for(gpus_per_node, nodes)
    try:
        with elsewhere:
            settings = load_config(config, overrides or [])
    except ConfigError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        sys.exit(USAGE)
    if gpus_per_node is None:
        print(choose(settings.platform.device).line(), file=sys.stderr)
    print(settings.to_yaml(), end="")


@app.command()
def report(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="output_dir of a run")],
) -> None:
    """Draw the run's curves into RUN_DIR/report.png."""
    with user_errors():
        if not run_dir.is_dir():
            raise ConfigError(f"RUN_DIR: {run_dir} is no directory; give the output_dir of a run")
        from scope_megatron.report.figure import write_report

        write_report(run_dir)


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="print a JSON list instead")] = False,
) -> None:
    """Examine this machine: packages and their versions, GPUs, limits, collectives, Slurm.

    Exit code 1 when something that training needs does not work.
    """
    from scope_megatron.doctor import diagnose

    sys.exit(diagnose(as_json))


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


def _settle(settings: Config, file: TextIO | None = None) -> None:
    """Follow the chosen device from here on, and say once which it is and why."""
    if os.environ.get("RANK", "0") == "0" and LAUNCHER_VARIABLE not in os.environ:
        print(choose(settings.platform.device).line(), file=file, flush=True)
    settle(settings.platform.device, settings.parallel.tensor)


def _must_launch(settings: Config) -> bool:
    return "RANK" not in os.environ and settings.world_size > 1


def _launch(command: str, config: Path, overrides: list[str] | None, settings: Config) -> NoReturn:
    """Run this command again in world_size processes."""
    from scope_megatron.job.launcher import launch

    arguments = [command, str(config), *(overrides or [])]
    sys.exit(launch(arguments, settings.world_size, settings.faults.restarts))


@contextmanager
def user_errors() -> Iterator[None]:
    """A ValueError that this package raises is for the user: one line, exit code 2.

    Any other exception, and a ValueError from inside a library, is a defect: its traceback stays.
    """
    try:
        yield
    except ConfigError as error:
        if _speaks_for_its_node():
            print(f"error: {error.one_line}", file=sys.stderr)
        sys.exit(USAGE)
    except ValueError as error:
        if not _raised_here(error):
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(USAGE)
    except StopRun as stop:
        if os.environ.get("RANK", "0") == "0" or stop.code in (LOST_RANK, ENGINE):
            print(f"error: {stop}", file=sys.stderr, flush=True)
        _end_at_once(stop.code)
    except KeyboardInterrupt:  # before the first step, or the second one in a row
        if _speaks_for_its_node():
            print("interrupted; what was saved before is kept", file=sys.stderr)
        sys.exit(INTERRUPTED)


def _end_at_once(code: int) -> NoReturn:
    """Without the goodbyes of process groups, which wait for ranks that may be gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _speaks_for_its_node() -> bool:
    """All ranks of a node read the same files and find the same problems: one says so."""
    return os.environ.get("LOCAL_RANK", os.environ.get("RANK", "0")) == "0"


def _raised_here(error: BaseException) -> bool:
    """Whether the `raise` stands in this package rather than in a library that it called."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and PACKAGE in Path(trace.tb_frame.f_code.co_filename).parents
