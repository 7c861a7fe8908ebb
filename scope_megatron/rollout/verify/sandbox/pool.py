"""Sandboxed processes: started ahead, spoken to, watched, and ended.

A job is a generator: it yields an Exchange, gets the Reply, and returns its verdict. The pool runs
several jobs at once in the calling thread; each process serves one job and is then killed.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import tempfile
import threading
import time
import weakref
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from scope_megatron.rollout.verify.sandbox.bubblewrap import (
    INSIDE,
    Limits,
    isolated_command,
    python_command,
    require_isolation,
)
from scope_megatron.rollout.verify.sandbox.seccomp import filter_program
from scope_megatron.types import Verdict

START_S = 60.0
START_TRIES = 3
END_S = 1.0  # from the end of the output to that of the sandbox
CHUNK = 1 << 16
KERNEL_COUNTS = Path("/proc/vmstat")


@dataclass(frozen=True)
class Exchange:
    """Something said to one of a job's processes, and the wait for its reply.

    ``process`` is the job's own name for it; one that is new, or ``fresh``, starts. ``whole``:
    standard input ends after ``data`` and the reply is all output up to the process's end;
    otherwise it is one line. The reply has to be there in ``seconds``.
    """

    process: str
    data: bytes
    seconds: float
    whole: bool = False
    fresh: bool = False


@dataclass(frozen=True)
class Reply:
    """``line``: a line came. ``end``: the process ended, with ``status`` (128 + signal if by one;
    negative if the system killed it). ``timeout`` and ``overflow``: it was killed."""

    how: Literal["line", "end", "timeout", "overflow"]
    data: bytes
    status: int = 0


Job = Generator[Exchange, Reply, Verdict]


def framed(header: dict[str, Any]) -> bytes:
    """The header that ``inside`` reads first."""
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "big") + text


class Pool:
    """Runs jobs, ``workers`` at a time, in processes of which as many wait started.

    ``isolated=False`` runs programs with limits alone: whoever asks for that trusts them. Raises
    NoIsolation if isolation is asked for and this machine has none.
    """

    def __init__(self, limits: Limits, workers: int = 1, isolated: bool = True) -> None:
        if isolated:
            require_isolation()
        self.limits, self.workers, self.isolated = limits, workers, isolated
        self._waiting: deque[Process] = deque()
        self._alive: list[Process] = []
        self._dying: list[Process] = []  # killed, and not yet gone
        self._failed_starts = 0
        self._lock = threading.Lock()
        self._finalizer = weakref.finalize(self, _end_all, (self._alive, self._dying), os.getpid())

    def close(self) -> None:
        """End the processes. Running jobs again starts new ones."""
        with self._lock:
            self._waiting.clear()
            _end_all((self._alive, self._dying), os.getpid())

    def run(self, jobs: Sequence[Job]) -> list[Verdict]:
        """The verdict of each job, in order. RuntimeError if no process starts."""
        queue = deque(enumerate(jobs))
        verdicts: dict[int, Verdict] = {}
        active: list[_Running] = []
        with self._lock:
            try:
                while len(verdicts) < len(jobs):
                    while queue and len(active) < self.workers:
                        running = _Running(*queue.popleft())
                        if self._advance(running, None, verdicts):
                            active.append(running)
                    self._start_ahead(len(queue) + len(active))
                    self._wait(active, verdicts)
            finally:
                for running in active:
                    running.job.close()
                    for process in running.processes.values():
                        self._end(process)
                for process in self._dying:
                    process.wait()
                self._dying.clear()
        return [verdicts[i] for i in range(len(jobs))]

    def _advance(
        self, running: _Running, reply: Reply | None, verdicts: dict[int, Verdict]
    ) -> bool:
        """Let the job go on after ``reply``. False when it has its verdict."""
        try:
            exchange = next(running.job) if reply is None else running.job.send(reply)
        except StopIteration as stop:
            verdicts[running.index] = stop.value
            for process in running.processes.values():
                self._end(process)
            return False
        if exchange.fresh and exchange.process in running.processes:
            self._end(running.processes.pop(exchange.process))
        if exchange.process not in running.processes:
            running.processes[exchange.process] = self._take()
        running.exchange = exchange
        running.processes[exchange.process].say(exchange)
        return True

    def _take(self) -> Process:
        """A process that waits, started ahead if there is one."""
        while self._waiting:
            process = self._waiting.popleft()
            if process.running():
                return process
            self._end(process)
        return self._new()

    def _new(self) -> Process:
        process = Process(self.limits, self.isolated)
        self._alive.append(process)
        return process

    def _start_ahead(self, jobs: int) -> None:
        while len(self._waiting) < min(self.workers, jobs):
            self._waiting.append(self._new())

    def _end(self, process: Process) -> None:
        """Kill a process. It goes while others are served: that can take the kernel a while."""
        if process in self._alive:
            self._alive.remove(process)
        process.kill()
        self._dying.append(process)
        self._dying[:] = [dying for dying in self._dying if not dying.gone()]

    def _wait(self, active: list[_Running], verdicts: dict[int, Verdict]) -> None:
        """Until something can be read or written, or a deadline passes; then take it further."""
        with selectors.DefaultSelector() as selector:
            for running in active:
                running.process.register(selector, running)
            first = min((r.process.deadline for r in active), default=0.0)
            events = selector.select(max(0.0, first - time.monotonic())) if active else []
        for key, mask in events:
            if mask & selectors.EVENT_WRITE:
                key.data.process.flush()
        readable = {id(key.data) for key, mask in events if mask & selectors.EVENT_READ}
        now = time.monotonic()
        for running in list(active):
            process = running.process
            reply = process.read(running.exchange) if id(running) in readable else None
            if reply is None and process.deadline <= now:
                reply = Reply("timeout", b"")
            if reply is None:
                continue
            if not process.ready:
                self._count_failed_start(process)
                running.processes.pop(running.exchange.process)
                running.processes[running.exchange.process] = self._take()
                running.process.say(running.exchange)
                continue
            self._failed_starts = 0
            if reply.how != "line":
                self._end(running.processes.pop(running.exchange.process))
            if not self._advance(running, reply, verdicts):
                active.remove(running)

    def _count_failed_start(self, process: Process) -> None:
        self._end(process)
        self._failed_starts += 1
        if self._failed_starts >= START_TRIES:
            self._failed_starts = 0
            raise RuntimeError("verifier.code: no sandbox starts; see `scope-megatron doctor`")


@dataclass
class _Running:
    """A job, its processes by its names for them, and the exchange under way."""

    index: int
    job: Job
    processes: dict[str, Process] = field(default_factory=dict)
    exchange: Exchange = field(default_factory=lambda: Exchange("", b"", 0.0))

    @property
    def process(self) -> Process:
        return self.processes[self.exchange.process]


class Process:
    """One sandbox with its interpreter, from its start to its end."""

    def __init__(self, limits: Limits, isolated: bool) -> None:
        self.limits = limits
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._info = -1
        if isolated:
            self._popen = self._start_isolated()
        else:
            self._folder = tempfile.TemporaryDirectory(prefix="program-")
            command = python_command(limits, str(INSIDE), isolated=False)
            self._popen = self._start(command, self._folder.name, ())
        self._stdin, self._stdout = self._popen.stdin, self._popen.stdout
        os.set_blocking(self._stdin.fileno(), False)
        self.ready = False
        self.deadline = time.monotonic() + START_S
        self._unsent, self._received = memoryview(b""), bytearray()
        self._seconds, self._whole = 0.0, False
        self._killed = 0.0

    def _start_isolated(self) -> Any:
        filter_fd, filter_writer = os.pipe()
        self._info, info_writer = os.pipe()
        try:
            os.write(filter_writer, filter_program())
            os.close(filter_writer)
            command = isolated_command(self.limits, filter_fd, info_writer)
            return self._start(command, "/", (filter_fd, info_writer))
        finally:
            os.close(filter_fd)
            os.close(info_writer)

    @staticmethod
    def _start(command: list[str], folder: str, pass_fds: tuple[int, ...]) -> Any:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
            cwd=folder,
            pass_fds=pass_fds,
            start_new_session=True,
            bufsize=0,
        )

    def running(self) -> bool:
        return self._popen.poll() is None

    def say(self, exchange: Exchange) -> None:
        """Start an exchange. Its time runs from now, or from when the interpreter is ready."""
        self._unsent, self._received = memoryview(exchange.data), bytearray()
        self._kills = _kills_for_memory()
        self._seconds, self._whole = exchange.seconds, exchange.whole
        if self.ready:
            self.deadline = time.monotonic() + self._seconds
        else:
            self.deadline = time.monotonic() + START_S
        self.flush()

    def register(self, selector: selectors.BaseSelector, data: Any) -> None:
        selector.register(self._stdout, selectors.EVENT_READ, data)
        if self._unsent:
            selector.register(self._stdin, selectors.EVENT_WRITE, data)

    def flush(self) -> None:
        """Write what the pipe takes; close it after the last byte of a whole exchange. A process
        that does not read any more is found out when its output ends."""
        try:
            while self._unsent and (sent := self._stdin.write(self._unsent)):
                self._unsent = self._unsent[sent:]
        except OSError:
            self._unsent = memoryview(b"")
        if self._whole and not self._unsent:
            self._stdin.close()

    def read(self, exchange: Exchange) -> Reply | None:
        """What came to a reply; None while it is incomplete."""
        data = os.read(self._stdout.fileno(), CHUNK)
        if data and not self.ready:
            self.ready, data = True, data[1:]
            self.deadline = time.monotonic() + self._seconds
            if not data:
                return None
        self._received += data
        if len(self._received) > self.limits.output_bytes:
            return Reply("overflow", b"")
        if not data:
            return Reply("end", bytes(self._received), self._status())
        if not exchange.whole and self._received.endswith(b"\n"):
            return Reply("line", bytes(self._received))
        return None

    def _status(self) -> int:
        """The exit status. A program that closed its output and goes on can say no more; one that
        says it was killed was so if the kernel counted that."""
        try:
            status = int(self._popen.wait(END_S))
        except subprocess.TimeoutExpired:
            return 128 + signal.SIGALRM
        status = 128 - status if status < 0 and self._info < 0 else status  # it has no sandbox
        killed = status == 128 + signal.SIGKILL and _kills_for_memory() != self._kills
        return -signal.SIGKILL if killed else status

    def kill(self) -> None:
        """Kill everything in the sandbox. First the init of its process namespace: bwrap reaps
        it then, and ends; with bwrap gone first, nobody might."""
        if self._popen.poll() is None:
            inner = self._inner_pid()
            if inner:
                _kill(inner)
            else:
                os.killpg(self._popen.pid, signal.SIGKILL)
        self._killed = time.monotonic()
        self._stdin.close()
        self._stdout.close()

    def gone(self) -> bool:
        """Whether a killed sandbox is no more; one that lingers is killed from above."""
        if self._popen.poll() is None:
            if time.monotonic() - self._killed > END_S:
                os.killpg(self._popen.pid, signal.SIGKILL)
            return False
        if self._info >= 0:
            os.close(self._info)
            self._info = -1
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None
        return True

    def wait(self) -> None:
        """Until a killed sandbox is gone."""
        while not self.gone():
            try:
                self._popen.wait(END_S)
            except subprocess.TimeoutExpired:
                continue

    def _inner_pid(self) -> int:
        """The sandbox's first process as this machine numbers it; 0 if it is not there."""
        if self._info < 0:
            return 0
        os.set_blocking(self._info, False)
        try:
            pid = int(json.loads(os.read(self._info, 4096))["child-pid"])
            with open(f"/proc/{pid}/stat") as stat:
                parent = int(stat.read().rsplit(")", 1)[1].split()[1])
        except (OSError, ValueError, KeyError, IndexError):
            return 0
        return pid if parent == self._popen.pid else 0


def _kills_for_memory() -> str:
    """The kernel's count of processes that it killed for want of memory, as a line."""
    try:
        lines = KERNEL_COUNTS.read_text().splitlines()
    except OSError:
        return ""
    return next((line for line in lines if line.startswith("oom_kill ")), "")


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _end_all(lists: tuple[list[Process], list[Process]], owner: int) -> None:
    """``owner``: the process that started them; a fork of it must leave them alone."""
    alive, dying = lists
    while os.getpid() == owner and (alive or dying):
        if alive:
            alive[-1].kill()
            dying.append(alive.pop())
        else:
            dying.pop().wait()
