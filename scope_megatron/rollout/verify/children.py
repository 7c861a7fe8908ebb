"""Graders in child processes that can be killed.

Text a model wrote can keep a grader inside one C call for hours; neither SIGALRM nor a thread stops
that. So graders run in children, the parent keeps the clock, and a child that overruns is killed
and replaced. It costs its own item and no other.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import threading
import time
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from scope_megatron.types import Verdict

START_S = 60.0  # for a child to import what it needs (Math-Verify: 0.3 s from a warm disk)
START_TRIES = 3
VERDICT_OF = {True: Verdict.CORRECT, False: Verdict.INCORRECT, None: Verdict.REFUSED}

Request = dict[str, Any]


class GraderProcesses:
    """Children that all run ``command`` and speak one JSON object per line.

    A child says {"ready": true} or {"error": reason} first. A request reaches it with an ``id``
    added; it answers {"id", "correct"} with true, false, or null where it will not judge. One that
    takes longer than ``timeout_s`` seconds is killed (TIMEOUT), one that dies is a CRASH.

    Children start when first needed and stay; ``close`` ends them. They have to end by themselves
    when this process dies: their standard input ends then.
    """

    def __init__(
        self,
        command: Sequence[str],
        timeout_s: float,
        workers: int,
        environment: Mapping[str, str],
        cannot_start: str,
    ) -> None:
        """``cannot_start``: the message of the RuntimeError when no child starts; its {reason}
        is what the child said."""
        if timeout_s <= 0 or workers < 1:
            raise ValueError("verifier.timeout_s must be above 0 and verifier.workers at least 1")
        self.command, self.environment = list(command), dict(environment)
        self.timeout_s, self.workers = timeout_s, workers
        self.cannot_start = cannot_start
        self.children: list[Child] = []
        self._failed_starts = 0
        self._lock = threading.Lock()
        self._finalizer = weakref.finalize(self, _kill_all, self.children, os.getpid())

    def close(self) -> None:
        """End the children. Grading again starts new ones."""
        with self._lock:
            _kill_all(self.children, os.getpid())

    def start(self) -> None:
        """Start a child and wait until it is ready. RuntimeError when none can be started."""
        with self._lock:
            if not self.children:
                self.children.append(Child(self.command, self.environment))
            while not any(child.ready for child in self.children):
                self._collect({})
                if not self.children:
                    self.children.append(Child(self.command, self.environment))

    def grade(self, requests: Mapping[int, Request]) -> dict[int, Verdict]:
        """A verdict for every request. RuntimeError when no child can be started at all."""
        verdicts: dict[int, Verdict] = {}
        queue = deque({"id": number} | request for number, request in requests.items())
        with self._lock:
            try:
                while len(verdicts) < len(requests):
                    self._hand_out(queue)
                    self._collect(verdicts)
            finally:  # interrupted: nobody will wait for what is still being graded
                for child in [c for c in self.children if c.request]:
                    self._drop(child)
        return verdicts

    def _hand_out(self, queue: deque[Request]) -> None:
        """Give every idle child a request; start children while requests wait."""
        for child in [c for c in self.children if c.ready and not c.request]:
            if queue and child.send(queue[0], self.timeout_s):
                queue.popleft()
            elif queue:  # it died while idle: not the request's fault
                self._drop(child)
        starting = sum(not c.ready for c in self.children)
        while len(self.children) < self.workers and starting < len(queue):
            self.children.append(Child(self.command, self.environment))
            starting += 1

    def _collect(self, verdicts: dict[int, Verdict]) -> None:
        """Wait for a reply, an end or a deadline, whichever is first, and record it."""
        active = [c for c in self.children if c.request or not c.ready]
        with selectors.DefaultSelector() as selector:
            for child in active:
                selector.register(child.replies, selectors.EVENT_READ, child)
                if child.unsent:
                    selector.register(child.requests, selectors.EVENT_WRITE, child)
            wait_s = min(c.deadline for c in active) - time.monotonic()
            events = selector.select(max(0.0, wait_s))
        for key, event in events:
            if event & selectors.EVENT_WRITE:
                key.data.flush()
        readable = [key.data for key, event in events if event & selectors.EVENT_READ]
        for child in readable:
            self._on_reply(child, child.read(), verdicts)
        now = time.monotonic()
        for child in [c for c in active if c not in readable and c.deadline <= now]:
            self._on_end(child, Verdict.TIMEOUT, f"no sign of it in {START_S:g} s", verdicts)

    def _on_reply(
        self, child: Child, reply: dict[str, Any] | None, verdicts: dict[int, Verdict]
    ) -> None:
        if reply == {}:  # half a line
            return
        if reply and not child.ready and reply.get("ready"):
            child.ready, self._failed_starts = True, 0
        elif reply and child.request and reply.get("id") == child.request["id"]:
            correct = reply.get("correct")
            judged = correct is None or isinstance(correct, bool)
            verdicts[child.request["id"]] = VERDICT_OF[correct] if judged else Verdict.REFUSED
            child.request = None
        else:
            reason = (reply or {}).get("error") or "it ended at once"
            self._on_end(child, Verdict.CRASH, reason, verdicts)

    def _on_end(
        self, child: Child, verdict: Verdict, reason: str, verdicts: dict[int, Verdict]
    ) -> None:
        """A child is lost: its request, if it had one, gets ``verdict``."""
        self._drop(child)
        if child.request:
            verdicts[child.request["id"]] = verdict
            return
        self._failed_starts += 1
        if self._failed_starts >= START_TRIES:
            self._failed_starts = 0
            raise RuntimeError(self.cannot_start.format(reason=reason))

    def _drop(self, child: Child) -> None:
        self.children.remove(child)
        child.kill()


class Child:
    """One grader process, its pipes, and the request it works on."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        process: Any = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=dict(environment),
            cwd="/",
            start_new_session=True,  # its own group to kill, and out of reach of Ctrl-C
            bufsize=0,
        )
        self._process = process
        self.requests, self.replies = process.stdin, process.stdout
        os.set_blocking(self.requests.fileno(), False)
        self.unsent = b""
        self.ready = False
        self.request: Request | None = None
        self.deadline = time.monotonic() + START_S
        self._half_line = b""

    @property
    def pid(self) -> int:
        return int(self._process.pid)

    def send(self, request: Request, timeout_s: float) -> bool:
        """Start a request; what does not fit into the pipe goes out by ``flush``. False if the
        child is gone."""
        self.unsent = json.dumps(request, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        self.request, self.deadline = request, time.monotonic() + timeout_s
        if not self.flush():
            self.request = None
        return self.request is not None

    def flush(self) -> bool:
        """Write what the pipe takes now. False if the child is gone."""
        try:
            self.unsent = self.unsent[self.requests.write(self.unsent) or 0 :]
        except OSError:
            self.unsent = b""
            return False
        return True

    def read(self) -> dict[str, Any] | None:
        """The next reply, {} while its line is incomplete, None at the end or for nonsense."""
        data = os.read(self.replies.fileno(), 65536)
        self._half_line += data
        if not data:
            return None
        if not self._half_line.endswith(b"\n"):
            return {}
        line, self._half_line = self._half_line, b""
        try:
            reply = json.loads(line)
        except ValueError:
            return None
        return reply if isinstance(reply, dict) else None

    def kill(self) -> None:
        """End the child's process group and reap the child."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self.requests.close()
        self.replies.close()


def _kill_all(children: list[Child], owner: int) -> None:
    """``owner``: the process that started them; a fork of it must leave them alone."""
    while os.getpid() == owner and children:
        children.pop().kill()
