"""`scope-megatron` as torchrun would start it, its ranks forked where all is imported already.

A run of tiny models spends most of its time importing vLLM, once per rank. The ranks of
:func:`run_command` find it imported (preload.py) and are otherwise those of the command line: their
own processes, one thread each, the same numbers digit for digit. What a launcher does (signals,
restarts) is not here; tests of that start the command itself.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path

import psutil
import torch.distributed as dist

from tests.support.harness import follow_parent, forked_context

ROOT = Path(__file__).resolve().parents[2]


def run_command(
    arguments: list[str], ranks: int, log: Path, within_s: float
) -> tuple[list[int | None], str]:
    """(exit code of each rank, what they printed) of `scope-megatron *arguments`.

    Args:
        arguments: of the command.
        ranks: how many processes of one world run it; 1: one that knows of no world.
        log: a new file for what they print.
        within_s: after so many seconds what still runs is killed and has the code None.
    """
    store = dist.TCPStore(
        "127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(minutes=30)
    )
    world = {
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }
    environment = dict(os.environ) | {"OMP_NUM_THREADS": "1"}
    environments = [
        environment | (world | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {})
        for rank in range(ranks)
    ]
    context = forked_context()
    processes = [
        context.Process(target=_rank, args=(arguments, environment, log))
        for environment in environments
    ]
    for process in processes:
        process.start()
    deadline = time.monotonic() + within_s
    running = {process.sentinel: process for process in processes}
    while running and time.monotonic() < deadline:
        for sentinel in wait(running, timeout=deadline - time.monotonic()):
            running.pop(sentinel).join()
    for process in running.values():
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()
        process.join()
    codes = [None if process in running.values() else process.exitcode for process in processes]
    return codes, log.read_text(errors="replace")


def _rank(arguments: list[str], environment: dict[str, str], log: Path) -> None:
    threading.Thread(target=follow_parent, daemon=True).start()
    with log.open("ab") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    sys.argv = ["scope-megatron", *arguments]
    from scope_megatron.cli import main

    main()
