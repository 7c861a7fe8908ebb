"""Start the ranks of a single-machine job, so that one command is enough.

On several machines torchrun or Slurm start the ranks and this file is not used. What it adds to
torchrun on one machine: an interrupt reaches the ranks once and they get the time they need to
save (torchrun kills them after 30 seconds); and ranks do not outlive it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from datetime import timedelta

import torch.distributed as dist

from scope_megatron.exits import RESTARTABLE
from scope_megatron.job import LAUNCHER_VARIABLE

_EXIT_GRACE_S = 15.0  # after one rank failed, how long the others may take to notice
_POLL_S = 0.1
LOST_KEY = "scope_megatron/lost"  # in its store: the rank that it saw end by a signal
_PR_SET_PDEATHSIG = 1


def start_ranks(module_args: list[str], nproc: int, restarts: int = 0) -> int:
    """Run ``python -m scope_megatron MODULE_ARGS...`` as ``nproc`` ranks; returns the exit code.

    After an exit code of ``exits.RESTARTABLE`` all ranks are started again, up to ``restarts``
    times, to go on from the last checkpoint; never after SIGINT or SIGTERM asked for an end.
    """
    asked: list[int] = []
    for attempt in range(restarts + 1):
        print(f"starting {nproc} ranks on this machine ...", flush=True)
        code = _run(module_args, nproc, attempt, asked)
        if code not in RESTARTABLE or attempt == restarts or asked:
            break
        print(f"exit code {code}: restart {attempt + 1} of {restarts}", file=sys.stderr, flush=True)
        kept = [a for a in module_args if not a.startswith("resume=")]
        module_args = [*kept, "resume=auto"]
    return code


def started_by_launcher() -> bool:
    """Whether this rank was started here, and not by torchrun or Slurm."""
    return LAUNCHER_VARIABLE in os.environ


def end_with_launcher() -> None:
    """In a rank: ask the kernel for a SIGTERM when the launcher dies, even by SIGKILL."""
    launcher = os.environ.get(LAUNCHER_VARIABLE)
    if launcher is None or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(launcher):  # it died before that
        os.kill(os.getpid(), signal.SIGTERM)


def _run(module_args: list[str], nproc: int, attempt: int, asked: list[int]) -> int:
    """Exit code of one start of the ranks; signals that came are added to ``asked``."""
    store = dist.TCPStore(  # here, so that it outlives every rank
        "127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(minutes=30)
    )
    command = [sys.executable, "-m", "scope_megatron", *module_args]
    ranks: list[subprocess.Popen[bytes]] = []

    def forward(signum: int, frame: object) -> None:
        """The ranks decide together when to stop."""
        asked.append(signum)
        for rank in ranks:
            if rank.poll() is None:
                rank.send_signal(signum)

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, forward)
    try:
        for number in range(nproc):
            env = os.environ | _rank_environment(number, nproc, store.port, attempt)
            ranks.append(subprocess.Popen(command, env=env))
        return _wait(ranks, store)
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()


def _wait(ranks: list[subprocess.Popen[bytes]], store: dist.Store) -> int:
    """0 when all are done; as soon as one fails, that one's exit code, after a little while."""
    while not (failed := [rank for rank in ranks if rank.poll()]):
        if all(rank.returncode == 0 for rank in ranks):
            return 0
        time.sleep(_POLL_S)
    code = failed[0].returncode
    if code < 0:
        name, number = signal.Signals(-code).name, ranks.index(failed[0])
        print(f"error: rank {number} was ended by {name}", file=sys.stderr, flush=True)
        store.set(LOST_KEY, str(number))  # the others may hang in a collective: let them look
    deadline = time.monotonic() + _EXIT_GRACE_S
    while time.monotonic() < deadline and any(map(_running, ranks)):
        time.sleep(_POLL_S)
    return 128 - code if code < 0 else code


def _running(rank: subprocess.Popen[bytes]) -> bool:
    """Not at its end, and not stopped by SIGSTOP: such a one would be waited for in vain."""
    if rank.poll() is not None:
        return False
    try:
        with open(f"/proc/{rank.pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "T"
    except OSError:
        return True  # no /proc here


def _rank_environment(rank: int, nproc: int, port: int, attempt: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(nproc),
        "LOCAL_WORLD_SIZE": str(nproc),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the launcher's, instead of one of rank 0
        "TORCHELASTIC_RESTART_COUNT": str(attempt),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        LAUNCHER_VARIABLE: str(os.getpid()),
    }
