"""Run a function on several processes that form one torch.distributed world.

    def check(rank: int, world_size: int, hidden: int) -> torch.Tensor: ...   # module level

    results = run_distributed_test(check, 2, 64)       # one result per rank

The ranks are forked from a server that has imported torch, megatron-core and, for tests of the
engine, vLLM (preload.py); GPUs do not survive a fork, so with nccl they are fresh interpreters.

A rank that raises makes the call raise with that rank's traceback; a hang makes it raise at the
timeout with the stack of every rank. No process outlives the call.
"""

from __future__ import annotations

import faulthandler
import os
import pickle
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import forkserver, parent_process
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

ENGINES_TOO = "SCOPE_MEGATRON_TESTS_ENGINES_TOO"  # environment: the ranks will start engines
_START_S = 120
_POLL_S = 0.1
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
        timeout: seconds that ``func`` may take once all ranks have joined; the start of the
            processes is not counted (it has two minutes).
        backend: ``gloo``, or ``nccl`` with one GPU for each rank.

    Returns:
        What the ranks returned (picklable), in rank order.

    Raises:
        DistributedTestError: a rank raised, died or hung.
    """
    with tempfile.TemporaryDirectory(prefix="distributed-test-") as name:
        folder = Path(name)
        context, call = _context(backend), (func, args, dict(os.environ))
        settings = (world_size, folder, timeout, backend)
        ranks = [
            context.Process(target=_run_rank, args=(call, rank, *settings))
            for rank in range(world_size)
        ]
        try:
            for process in ranks:
                process.start()
            _join(ranks, folder, timeout)
            return [_load(folder / f"{rank}.result") for rank in range(world_size)]
        finally:
            for process in ranks:
                if process.pid is not None:
                    process.kill()
                    process.join()


def need_gpus(count: int) -> None:
    """Skip the test where this machine has fewer GPUs than a world of ``count`` ranks takes: two
    NCCL ranks cannot share one."""
    if torch.cuda.device_count() < count:
        pytest.skip(f"needs {count} GPUs")


def _context(backend: str) -> Any:
    """How the ranks' processes start. Triton decides when it is imported whether it interprets."""
    if backend != "gloo" or os.environ.get("TRITON_INTERPRET") == "1":
        return mp.get_context("spawn")
    return forked_context()


def forked_context() -> Any:
    """Processes are forked from a server that has imported what ranks need (preload.py)."""
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.preload"])
    with mock.patch.dict(os.environ, {"OMP_NUM_THREADS": "1"}):  # no pool that a fork would lose
        forkserver.ensure_running()
    return context


Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, str]]


def _run_rank(
    call: Call, rank: int, world_size: int, folder: Path, timeout: float, backend: str
) -> None:
    """The body of one process. It leaves ``RANK.result`` or ``RANK.error`` in the folder."""
    func, args, environment = call
    os.environ.clear()
    os.environ.update(environment)  # the server's is that of the first test
    with open(folder / f"{rank}.stack", "w") as stack:
        try:
            threading.Thread(target=follow_parent, daemon=True).start()
            os.environ["LOCAL_RANK"] = str(rank)  # names the device of a rank
            torch.set_num_threads(1)
            if backend == "nccl":
                torch.cuda.set_device(rank)
            dist.init_process_group(
                backend,
                init_method=f"file://{folder}/store",
                rank=rank,
                world_size=world_size,
                # later than the parent's, which knows more of a hang than one rank does
                timeout=timedelta(seconds=2 * timeout + 60),
            )
            _write(folder / f"{rank}.joined", b"")
            faulthandler.dump_traceback_later(max(timeout - 1.0, timeout / 2), file=stack)
            _write(folder / f"{rank}.result", pickle.dumps(func(rank, world_size, *args)))
            if dist.is_initialized():  # an engine that is collected ends the world itself
                dist.destroy_process_group()
        except BaseException:
            _write(folder / f"{rank}.error", traceback.format_exc().encode())
            os._exit(1)  # tearing the groups down could wait for ranks that are gone
        finally:
            faulthandler.cancel_dump_traceback_later()


def follow_parent() -> None:
    """End this rank when the test run is killed, which then cannot end it."""
    process = parent_process()
    if process is not None:
        process.join()
        os._exit(1)


def _write(path: Path, content: bytes) -> None:
    """Appear all at once: the parent reads while ranks still run."""
    partial = path.with_suffix(".partial")
    partial.write_bytes(content)
    partial.rename(path)


def _load(path: Path) -> Any:
    return pickle.loads(path.read_bytes())


def _join(ranks: list[BaseProcess], folder: Path, timeout: float) -> None:
    """Wait until all ranks succeed; raise at the first failure, or at the timeout."""
    running = {process.sentinel: process for process in ranks}
    joined, deadline = False, time.monotonic() + _START_S
    while running:
        if not joined and len(list(folder.glob("*.joined"))) == len(ranks):
            joined, deadline = True, time.monotonic() + timeout
        if time.monotonic() > deadline:
            hung = [rank for rank, process in enumerate(ranks) if process.is_alive()]
            what = f"still ran after {timeout}" if joined else f"had not started after {_START_S}"
            raise DistributedTestError(
                f"rank(s) {hung} {what} s\n" + _report(folder, ranks, "stack")
            )
        for sentinel in wait(running, timeout=_POLL_S):
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
