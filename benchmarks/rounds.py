"""Contestants that take turns: each is a group of processes that lives through the whole run.

A round asks every contestant for one step, one after the other, so that all see the same machine;
those that do not have their turn wait in a read and use no core. A step's time is its slowest
rank's.
"""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_CHANNEL = "BENCH_CHANNEL"  # the descriptor by which a worker is asked

Figures = dict[str, float]


class Contestant:
    """``ranks`` processes of ``python -m module *arguments``, each of which calls :func:`serve`."""

    def __init__(
        self,
        name: str,
        module: str,
        arguments: Sequence[str],
        ranks: int,
        log: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name, self.steps = name, list[Figures]()
        self._channels: list[Connection] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        port = str(_free_port())
        for rank in range(ranks):
            ours, theirs = Pipe()
            variables = {
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": str(ROOT),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(ranks),
                "LOCAL_WORLD_SIZE": str(ranks),
                _CHANNEL: str(theirs.fileno()),
                **(environment or {}),
            }
            with (log / f"{name}-{rank}.log").open("wb") as out:
                process = subprocess.Popen(
                    [sys.executable, "-m", module, *arguments],
                    cwd=ROOT,
                    env=variables,
                    stdout=out,
                    stderr=out,
                    pass_fds=[theirs.fileno()],
                )
            theirs.close()
            self._channels.append(ours)
            self._processes.append(process)

    def ready(self) -> None:
        """Wait until every rank has built its models."""
        self._hear()

    def step(self) -> Figures:
        """One step; of every figure the largest among the ranks."""
        for channel in self._channels:
            channel.send("step")
        heard = self._hear()
        return {name: max(one[name] for one in heard if name in one) for name in heard[0]}

    def _hear(self) -> list[Figures]:
        try:
            return [channel.recv() for channel in self._channels]
        except EOFError:
            raise SystemExit(f"{self.name}: a rank ended; its log says why") from None

    def stop(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def alternate(contestants: Sequence[Contestant], rounds: int, warm: int) -> None:
    """``warm`` rounds that are not counted, then ``rounds`` that are."""
    for one in contestants:
        one.ready()
    for number in range(warm + rounds):
        for one in contestants if number % 2 == 0 else reversed(contestants):
            figures = one.step()
            if number >= warm:
                one.steps.append(figures)


def run_turns(contestants: Sequence[Contestant], rounds: int, warm: int, log: Path) -> None:
    """:func:`alternate`; ends the processes, and shows the ends of their logs when one has died."""
    try:
        alternate(contestants, rounds, warm)
    except SystemExit:
        for path in sorted(log.glob("*-0.log")):
            print(f"--- {path.name}\n{path.read_text(errors='replace')[-3000:]}")
        raise
    finally:
        for one in contestants:
            one.stop()


def compete(
    contestants: Sequence[Contestant], rounds: int, warm: int, log: Path
) -> dict[str, Figures]:
    """:func:`run_turns`; the medians by contestant, printed as well."""
    run_turns(contestants, rounds, warm, log)
    found = {one.name: medians(one.steps) for one in contestants}
    for title, figures in found.items():
        print(f"{title:8}", "  ".join(f"{k} {v:.3f}" for k, v in figures.items() if v >= 0.0005))
    return found


def medians(steps: Sequence[Figures]) -> Figures:
    """Of every figure, over the steps."""
    return {name: statistics.median(step[name] for step in steps) for name in steps[0]}


def channel() -> Connection:
    """A worker's side of the channel."""
    return Connection(int(os.environ[_CHANNEL]))


def serve(step: Callable[[], Figures]) -> None:
    """A worker's life: make a step whenever it is asked for, and say what it took."""
    asked = channel()
    asked.send({})
    while asked.recv() == "step":
        asked.send(step())
