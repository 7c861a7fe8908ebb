"""Start the ranks of a single-machine job, so that one command is enough.

On several machines torchrun or Slurm start the ranks and this file is not used. What it adds to
torchrun on one machine: an interrupt reaches the ranks once and they get the time they need to
save (torchrun kills them after 30 seconds).
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import time

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, start_processes
from torch.distributed.elastic.multiprocessing.api import PContext

_EXIT_GRACE_S = 10.0  # after one rank failed, how long the others may take to notice


def launch(module_args: list[str], nproc: int) -> int:
    """Run ``python -m scope_megatron MODULE_ARGS...`` as ``nproc`` ranks; returns the exit code."""
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # _wait reports
    print(f"starting {nproc} ranks on this machine ...", flush=True)
    port = _free_port()
    envs = {rank: _rank_environment(rank, nproc, port) for rank in range(nproc)}
    context = start_processes(
        name="scope_megatron",
        entrypoint=sys.executable,
        args={rank: ("-m", "scope_megatron", *module_args) for rank in range(nproc)},
        envs=envs,
        logs_specs=DefaultLogsSpecs(),
    )
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, _Forwarder(context))
    try:
        return _wait(context)
    finally:
        context.close(death_sig=signal.SIGKILL, timeout=5)


class _Forwarder:
    """Passes a signal on to every rank: the ranks decide together when to stop."""

    def __init__(self, context: PContext) -> None:
        self._context = context

    def __call__(self, signum: int, frame: object) -> None:
        for pid in self._context.pids().values():
            try:
                os.kill(pid, signum)
            except ProcessLookupError:
                continue


def _wait(context: PContext) -> int:
    result = None
    while result is None:
        result = context.wait(timeout=1, period=0.1)
    if not result.is_failed():
        return 0
    _let_others_finish(context, list(result.failures))
    first = min(result.failures.values(), key=lambda failure: failure.timestamp)
    code = first.exitcode
    if code < 0:
        name = signal.Signals(-code).name
        print(f"error: rank {first.local_rank} was ended by {name}", file=sys.stderr)
        return 128 - code
    return code


def _let_others_finish(context: PContext, failed: list[int]) -> None:
    """The others may be saving or printing: wait for them a little before they are killed."""
    pids = [pid for rank, pid in context.pids().items() if rank not in failed]
    deadline = time.monotonic() + _EXIT_GRACE_S
    while time.monotonic() < deadline and any(_running(pid) for pid in pids):
        time.sleep(0.1)


def _running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _rank_environment(rank: int, nproc: int, port: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(nproc),
        "LOCAL_WORLD_SIZE": str(nproc),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    }


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
