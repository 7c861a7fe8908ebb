"""Run a function on several processes that form one torch.distributed world.

    def check(rank: int, world_size: int, hidden: int) -> torch.Tensor: ...   # module level

    results = run_distributed_test(check, 2, 64)       # one result per rank

A rank that raises makes the call raise with that rank's traceback; a hang makes it raise at the
timeout with the stack of every rank. No process outlives the call.
"""

from __future__ import annotations

import faulthandler
import os
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

_GRACE_S = 0.5  # for the other ranks to report as well, when one has failed


class DistributedTestError(RuntimeError):
    """A rank failed, or the ranks hung. The message holds the tracebacks."""


def run_distributed_test(
    func: Callable[..., Any],
    world_size: int,
    *args: Any,
    timeout: float = 180,
    backend: str = "gloo",
) -> list[Any]:
    """Call ``func(rank, world_size, *args)`` on ``world_size`` fresh processes.

    Args:
        func: a module-level function; it finds the default process group initialised.
        args: picklable; every rank gets a copy.
        timeout: seconds for everything, the processes' start included.
        backend: ``gloo``, or ``nccl`` with one GPU for each rank.

    Returns:
        What the ranks returned (picklable), in rank order.

    Raises:
        DistributedTestError: a rank raised, died or hung.
    """
    deadline = time.time() + timeout
    with tempfile.TemporaryDirectory(prefix="distributed-test-") as name:
        folder = Path(name)
        context = mp.get_context("spawn")
        ranks = [
            context.Process(
                target=_run_rank, args=(func, rank, world_size, args, folder, deadline, backend)
            )
            for rank in range(world_size)
        ]
        try:
            for process in ranks:
                process.start()
            _join(ranks, folder, deadline, timeout)
            return [_load(folder / f"{rank}.result") for rank in range(world_size)]
        finally:
            for process in ranks:
                if process.pid is not None:
                    process.kill()
                    process.join()


def _run_rank(
    func: Callable[..., Any],
    rank: int,
    world_size: int,
    args: tuple[Any, ...],
    folder: Path,
    deadline: float,
    backend: str,
) -> None:
    """The body of one process. It leaves ``RANK.result`` or ``RANK.error`` in the folder."""
    with open(folder / f"{rank}.stack", "w") as stack:
        left = max(deadline - time.time(), 1.0)
        faulthandler.dump_traceback_later(max(left - 1.0, 0.5), file=stack)
        try:
            torch.set_num_threads(1)
            if backend == "nccl":
                torch.cuda.set_device(rank)
            dist.init_process_group(
                backend,
                init_method=f"file://{folder}/store",
                rank=rank,
                world_size=world_size,
                timeout=timedelta(seconds=left),
            )
            _write(folder / f"{rank}.result", pickle.dumps(func(rank, world_size, *args)))
            dist.destroy_process_group()
        except BaseException:
            _write(folder / f"{rank}.error", traceback.format_exc().encode())
            os._exit(1)  # tearing the groups down could wait for ranks that are gone
        finally:
            faulthandler.cancel_dump_traceback_later()


def _write(path: Path, content: bytes) -> None:
    """Appear all at once: the parent reads while ranks still run."""
    partial = path.with_suffix(".partial")
    partial.write_bytes(content)
    partial.rename(path)


def _load(path: Path) -> Any:
    return pickle.loads(path.read_bytes())


def _join(ranks: list[BaseProcess], folder: Path, deadline: float, timeout: float) -> None:
    """Wait until all ranks succeed; raise at the first failure, or at the deadline."""
    running = {process.sentinel: process for process in ranks}
    while running:
        done = wait(running, timeout=max(deadline - time.time(), 0))
        if not done:
            hung = [rank for rank, process in enumerate(ranks) if process.is_alive()]
            raise DistributedTestError(
                f"rank(s) {hung} still ran after {timeout} s\n" + _report(folder, ranks, "stack")
            )
        for sentinel in done:
            process = running.pop(sentinel)
            process.join()
            if process.exitcode != 0:
                wait(running, timeout=_GRACE_S)
                raise DistributedTestError(_report(folder, ranks, "error"))


def _report(folder: Path, ranks: list[BaseProcess], kind: str) -> str:
    """The ranks' tracebacks, the earliest first: the later ones are often its consequences."""
    files = [path for path in folder.glob(f"*.{kind}") if path.stat().st_size]
    files.sort(key=lambda path: path.stat().st_mtime_ns)
    parts = [f"--- rank {path.stem} ---\n{path.read_text()}" for path in files]
    told = {path.stem for path in files}
    for rank, process in enumerate(ranks):
        if str(rank) not in told and process.exitcode not in (0, None):
            parts.append(f"--- rank {rank} died without a traceback, exit {process.exitcode} ---")
    return "\n".join(parts)
