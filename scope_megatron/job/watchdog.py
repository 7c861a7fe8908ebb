"""Watchdog: heartbeats of every rank; a rank that stops or hangs is named and ends the run.

Each rank's watchdog thread publishes a heartbeat in the job's store, over a connection of its own:
where the rank is (step, phase) and since when. Rank 0 reads all of them, the others read rank 0's.
Three things end the run, on all ranks within seconds:

* no heartbeat for ``faults.heartbeat_timeout_s``: the process is stopped or dead, or its machine;
* a rank alive but in one phase for ``faults.hang_timeout_s``;
* a rank whose communication broke says so, or the launcher saw one end by a signal: then it is
  looked at once who gives no more signs.

Before it exits every rank writes the stacks of its threads to ``output_dir/stacks``.
"""

from __future__ import annotations

import faulthandler
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Protocol

import torch.distributed as dist

from scope_megatron import outputs
from scope_megatron.config import FaultsConfig
from scope_megatron.exits import HUNG, LOST_RANK, StopRun
from scope_megatron.job.launcher import LOST_KEY, started_by_launcher
from scope_megatron.parallel import platform
from scope_megatron.parallel.agree import barrier
from scope_megatron.parallel.meeting import job_place, start_name

_ABORT, _SUSPECT = "abort", "suspect"
START_S = 1800.0  # until ranks of the other kind have been built as well


class Progress:
    """Step and phase of this rank; the training thread writes it, the watchdog's reads it."""

    def __init__(self) -> None:
        self.step, self._state = 1, ("start", 0, time.monotonic(), False)

    def enter(self, phase: str, waits: bool = False) -> None:
        """The next phase of the step begins. ``waits``: for ranks of the other kind, where those
        that sample and those that train are apart."""
        self._state = (phase, self._state[1] + 1, time.monotonic(), waits)

    def beat(self, count: int) -> Beat:
        phase, order, since, waits = self._state
        seconds, host = time.monotonic() - since, socket.gethostname()
        return Beat(count, self.step, phase, order, seconds, host, os.getpid(), waits)


@dataclass(frozen=True)
class Beat:
    """One sign of life."""

    count: int  # differs from the one before
    step: int  # the first before any has begun
    phase: str
    order: int  # phases entered so far: the same on all ranks when they are at the same place
    seconds: float  # since this phase began
    host: str
    pid: int
    waits: bool = False  # for ranks of the other kind: it cannot be what hangs

    def where(self) -> str:
        return f"step {self.step}, phase {self.phase}"


@dataclass(frozen=True)
class Diagnosis:
    """Why the run ends, and the exit code."""

    code: int
    message: str


class Judge:
    """Decides from heartbeats and this process's own clock alone.

    ``hangs``: also who makes no progress. Only rank 0 sees all ranks and can tell who is behind.
    ``training``: the first so many ranks train, the others only sample; None: all do both.
    """

    def __init__(
        self,
        settings: FaultsConfig,
        interval_s: float,
        *,
        hangs: bool = True,
        training: int | None = None,
    ) -> None:
        self._settings, self._interval_s, self._hangs = settings, interval_s, hangs
        self._training = training
        self._seen: dict[int, tuple[int, float]] = {}  # rank: (count, when it changed)
        self._looked = 0.0

    def look(self, now: float, beats: Mapping[int, Beat]) -> Diagnosis | None:
        """The diagnosis at ``now``, seconds of a monotonic clock."""
        slept = now - self._looked > 3 * self._interval_s + 1.0
        self._looked = now
        for rank, beat in beats.items():
            # after this process was stopped itself (Ctrl-Z, a laptop's lid), all start anew
            if slept or self._seen.get(rank, (None,))[0] != beat.count:
                self._seen[rank] = (beat.count, now)
        limit = self._settings.heartbeat_timeout_s
        silent = [rank for rank in beats if now - self._seen[rank][1] > limit]
        if silent:
            why = f"gave no sign of life for {limit:.0f} s"
            return Diagnosis(LOST_RANK, f"{_names(silent, beats)} {why}")
        return self._hung(beats) if self._hangs else None

    def _hung(self, beats: Mapping[int, Beat]) -> Diagnosis | None:
        """Of the kind whose slowest rank waits for no other kind, who has entered fewest phases."""
        working = {rank: beat for rank, beat in beats.items() if not beat.waits}
        if working:
            slowest = max(working, key=lambda rank: working[rank].seconds)
        else:  # all wait for each other
            working = dict(beats)
            slowest = min(working, key=lambda rank: working[rank].seconds)
        seconds = beats[slowest].seconds
        if seconds <= self._settings.hang_timeout_s:
            return None
        alike = [rank for rank in working if self._samples(rank) == self._samples(slowest)]
        last = min(beats[rank].order for rank in alike)
        behind = [rank for rank in alike if beats[rank].order == last]
        why = f"made no progress for {seconds:.0f} s (faults.hang_timeout_s)"
        return Diagnosis(HUNG, f"{_names(behind, beats)} {why}")

    def _samples(self, rank: int) -> bool:
        return self._training is not None and rank >= self._training


def _names(ranks: list[int], beats: Mapping[int, Beat]) -> str:
    """`rank 3 (host, pid 71; step 4, phase train)`, at most four of them."""
    named = [
        f"rank {rank} ({beats[rank].host}, pid {beats[rank].pid}; {beats[rank].where()})"
        for rank in ranks[:4]
    ]
    more = f" and {len(ranks) - 4} more" if len(ranks) > 4 else ""
    return ", ".join(named) + more


class Store(Protocol):
    """The part of torch.distributed's stores that is used."""

    def set(self, key: str, value: str) -> None: ...
    def check(self, keys: list[str]) -> bool: ...
    def get(self, key: str) -> bytes: ...
    def wait(self, keys: list[str], timeout: timedelta) -> None: ...
    def multi_get(self, keys: list[str]) -> list[bytes]: ...


def job_store(timeout_s: float) -> tuple[Store, Store]:
    """A connection to the store that the ranks met at, for one thread alone: this start's keys,
    and all of them."""
    store = dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        wait_for_workers=False,
        timeout=timedelta(seconds=timeout_s),
    )
    return dist.PrefixStore(f"scope_megatron/watchdog/{start_name()}", store), store


class Watchdog:
    """This rank's thread. ``start`` once all ranks are built, ``stop`` before they part."""

    def __init__(self, settings: FaultsConfig, output_dir: Path, progress: Progress) -> None:
        self.progress = progress
        self._settings, self._stacks = settings, output_dir / outputs.STACKS
        place = job_place()
        self._rank, self._size = place.rank, place.size
        self._interval_s = min(max(settings.heartbeat_timeout_s / 10, 0.2), 1.0)
        hangs = self._rank == 0
        self._judge = Judge(settings, self._interval_s, hangs=hangs, training=place.training)
        self._stopped, self._broken = threading.Event(), threading.Event()
        self._count = 0
        self._beats: dict[int, Beat] = {}  # as last read
        self._answered = time.monotonic()
        self._store: Store | None = None
        self._launcher: Store | None = None  # where the launcher writes, if there is one
        self._heard = False  # the diagnosis is rank 0's, which says it

    def start(self) -> None:
        """Collective; does nothing when ``faults.heartbeat_timeout_s`` is 0."""
        if not self._settings.heartbeat_timeout_s:
            return
        self._store, whole = job_store(max(self._settings.heartbeat_timeout_s, 5.0))
        self._launcher = whole if started_by_launcher() else None
        self._publish()
        barrier()
        keys = [f"beat/{rank}" for rank in range(self._size)]
        self._store.wait(keys, timedelta(seconds=START_S))  # so that reading one never waits
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def stop(self) -> None:
        """No diagnosis after this returns (but for one that is being carried out)."""
        self._stopped.set()

    def peer_lost(self, error: BaseException) -> StopRun | None:
        """Whether ``error`` says that another rank is gone: then ask rank 0 who it is, and wait.

        The watchdog ends this process when the answer is there; the exception that is returned is
        for when none comes.
        """
        if not platform.lost_connection(error):
            return None
        why = " ".join(str(error).split())[:300]
        if self._store is not None and self._size > 1:
            try:
                self._broken.set()
                job_store(5.0)[0].set(_SUSPECT, json.dumps([self._rank, why]))
            except (RuntimeError, OSError):
                pass  # the store went away with its rank: the thread notices as well
            time.sleep(8 * self._interval_s + 2.0)
        return StopRun(LOST_RANK, f"another rank is gone: {why}")

    def _watch(self) -> None:
        while not self._stopped.wait(self._interval_s):
            try:
                self._publish()
                diagnosis = self._look()
                self._answered = time.monotonic()
            except (RuntimeError, OSError):  # DistStoreError and its kin
                diagnosis = self._store_is_gone()
            if diagnosis is not None and not self._stopped.is_set():
                self._abort(diagnosis)

    def _publish(self) -> None:
        assert self._store is not None
        self._count += 1
        beat = self.progress.beat(self._count)
        self._store.set(f"beat/{self._rank}", json.dumps(asdict(beat)))

    def _look(self) -> Diagnosis | None:
        """Rank 0's diagnosis; on rank 0 and on ranks that watch it, one of their own."""
        assert self._store is not None
        if self._store.check([_ABORT]):
            self._heard = True
            return Diagnosis(**json.loads(self._store.get(_ABORT)))
        watched: range | list[int] = range(self._size) if self._rank == 0 else [0]
        self._read(watched)
        diagnosis = None
        if self._rank == 0 and self._store.check([_SUSPECT]):
            witness, why = json.loads(self._store.get(_SUSPECT))
            diagnosis = self._find_gone(watched, (witness, why))
        elif (self._rank and self._broken.is_set()) or self._launcher_saw():
            diagnosis = self._find_gone(watched, None)
        diagnosis = diagnosis or self._judge.look(time.monotonic(), self._beats)
        if diagnosis is not None and self._rank == 0:
            self._store.set(_ABORT, json.dumps(asdict(diagnosis)))
        return diagnosis

    def _read(self, ranks: range | list[int]) -> None:
        assert self._store is not None
        texts = self._store.multi_get([f"beat/{rank}" for rank in ranks])
        beats = (Beat(**json.loads(text)) for text in texts)
        self._beats = dict(zip(ranks, beats, strict=True))

    def _launcher_saw(self) -> bool:
        """Whether one of the watched ranks ended by a signal."""
        if self._launcher is None or not self._launcher.check([LOST_KEY]):
            return False
        return self._rank == 0 or int(self._launcher.get(LOST_KEY)) == 0

    def _find_gone(
        self, watched: range | list[int], witness: tuple[int, str] | None
    ) -> Diagnosis | None:
        """Who of the ``watched`` gives no signs any more, now that a connection is lost: that of
        ``witness`` (rank, its error), or an unknown one (None), which is no diagnosis by itself."""
        before = self._beats
        for _ in range(3):
            time.sleep(self._interval_s)
            self._publish()
        self._read(watched)
        others = ((rank, beat) for rank, beat in self._beats.items() if rank != self._rank)
        gone = [rank for rank, beat in others if beat.count == before[rank].count]
        if gone:
            return Diagnosis(LOST_RANK, f"{_names(gone, self._beats)} went away")
        if witness is None:
            return None
        rank, why = witness
        return Diagnosis(LOST_RANK, f"{_names([rank], self._beats)} lost a connection: {why}")

    def _store_is_gone(self) -> Diagnosis | None:
        """Rank 0 serves the store, unless a launcher does."""
        quiet = time.monotonic() - self._answered
        if quiet < self._settings.heartbeat_timeout_s and not self._broken.is_set():
            return None
        known = _names([0], self._beats) if 0 in self._beats else "rank 0"
        return Diagnosis(LOST_RANK, f"{known} went away: the job's store does not answer")

    def _speaks(self) -> bool:
        """Rank 0; when it is gone, rank 1 and the first rank of every machine: with rank 0's
        machine, rank 1 may be gone as well."""
        if self._rank == 0 or self._heard:
            return self._rank == 0
        return self._rank == 1 or os.environ.get("LOCAL_RANK") == "0"

    def _abort(self, diagnosis: Diagnosis) -> None:
        """Say so, dump the stacks, exit. Rank 0 stays until the others have read the diagnosis."""
        if self._speaks():
            print(
                f"error: {diagnosis.message}; stacks: {self._stacks}", file=sys.stderr, flush=True
            )
        try:
            self._stacks.mkdir(parents=True, exist_ok=True)
            with open(self._stacks / f"rank_{self._rank:05d}.txt", "w", encoding="utf-8") as file:
                file.write(f"{diagnosis.message}\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
        except OSError as error:
            print(f"error: no stacks: {error}", file=sys.stderr, flush=True)
        if self._rank == 0:
            time.sleep(3 * self._interval_s)
        os._exit(diagnosis.code)
