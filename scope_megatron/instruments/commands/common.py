"""Parts shared by commands: a user's errors on one line, and the start of the ranks."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from scope_megatron.config import Config, ConfigError, setting_warnings
from scope_megatron.exits import ENGINE, INTERRUPTED, LOST_RANK, USAGE, StopRun
from scope_megatron.job import LAUNCHER_VARIABLE
from scope_megatron.machine import choose, settle

PACKAGE = Path(__file__).parents[2]


def settle_device(device: str, tensor: int, deterministic: bool = False) -> None:
    """Follow the chosen device from here on, and say once which it is and why."""
    if _speaks_first():
        print(choose(device).line(), flush=True)
    settle(device, tensor, deterministic)


def print_warnings(config: Config) -> None:
    """Say once of a job which settings may not be meant."""
    for line in setting_warnings(config) if _speaks_first() else ():
        print(f"warning: {line}", file=sys.stderr, flush=True)


def _speaks_first() -> bool:
    """Whether this is the job's first process: of ranks that are started here, who starts them."""
    return os.environ.get("RANK", "0") == "0" and LAUNCHER_VARIABLE not in os.environ


def must_launch(ranks: int) -> bool:
    """Whether the command's ranks are still to be started: neither torchrun nor Slurm did."""
    return "RANK" not in os.environ and ranks > 1


def launch_again(arguments: list[str], ranks: int, restarts: int = 0) -> NoReturn:
    """Run `scope-megatron ARGUMENTS` again in so many processes, and end with their exit code."""
    from scope_megatron.job import launcher

    sys.exit(launcher.start_ranks(arguments, ranks, restarts))


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
