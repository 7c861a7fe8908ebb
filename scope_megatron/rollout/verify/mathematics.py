"""Mathematics: Math-Verify in child processes that can be killed.

Text a model wrote can keep sympy inside one C call for hours; neither SIGALRM nor a thread stops
that. So the grader runs in children, the parent keeps the clock, and a child that overruns is
killed and replaced. What text alone decides (see ``answer``) never reaches a child.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scope_megatron.rollout.verify.answer import (
    MAX_CHARACTERS,
    equal_as_text,
    is_bomb,
    last_boxed,
)
from scope_megatron.types import Verdict

WORKER = Path(__file__).with_name("worker.py")
START_S = 60.0  # for a child to import Math-Verify (0.3 s from a warm disk)
START_TRIES = 3


class MathVerifier:
    r"""Grades the last ``\boxed{...}`` of each response against its reference answer.

    With ``require_boxed`` a response without a box is INCORRECT; otherwise Math-Verify looks for
    an answer in it. Only the last ``MAX_CHARACTERS`` characters of a response count, and a
    reference answer longer than that equals nothing but its own text. A response the grader could
    not finish in ``timeout_s`` seconds (or a power too large to begin with) is TIMEOUT, one it
    died on CRASH. With ``algebra_only`` two equal texts prove nothing: both must be read as the
    same mathematics (a check of the grader and of reference answers, not for training).

    Children start when first needed and stay; ``close`` ends them. They end by themselves if this
    process dies, a busy one after at most ``timeout_s`` + 3 processor seconds.
    """

    def __init__(
        self,
        timeout_s: float = 5.0,
        workers: int = 1,
        require_boxed: bool = True,
        algebra_only: bool = False,
    ) -> None:
        if timeout_s <= 0 or workers < 1:
            raise ValueError("verifier.timeout_s must be above 0 and verifier.workers at least 1")
        self.timeout_s, self.workers = timeout_s, workers
        self.require_boxed, self.algebra_only = require_boxed, algebra_only
        self._children: list[_Child] = []
        self._failed_starts = 0
        self._lock = threading.Lock()
        self._finalizer = weakref.finalize(self, _kill_all, self._children, os.getpid())

    def __enter__(self) -> MathVerifier:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End the children. Grading again starts new ones."""
        with self._lock:
            _kill_all(self._children, os.getpid())

    def grade(self, items: list[tuple[str, str]]) -> list[Verdict]:
        """One verdict per (response text, reference answer), in order.

        Raises RuntimeError when Math-Verify cannot be started at all.
        """
        verdicts: dict[int, Verdict] = {}
        queue: deque[_Request] = deque()
        for i, (response, answer) in enumerate(items):
            decided = self._by_text(i, response, answer)
            if isinstance(decided, Verdict):
                verdicts[i] = decided
            else:
                queue.append(decided)
        with self._lock:
            try:
                while len(verdicts) < len(items):
                    self._hand_out(queue)
                    self._collect(verdicts)
            finally:  # interrupted: nobody will wait for what is still being graded
                for child in [c for c in self._children if c.request]:
                    self._drop(child)
        return [verdicts[i] for i in range(len(items))]

    def _by_text(self, index: int, response: str, answer: str) -> Verdict | _Request:
        """The verdict, or the request to a child where it needs algebra."""
        tail = response[-MAX_CHARACTERS:]
        boxed = last_boxed(tail)
        if boxed is None and self.require_boxed:
            return Verdict.INCORRECT
        found = tail if boxed is None else boxed
        reference = last_boxed(answer) or answer
        equal = None if self.algebra_only else equal_as_text(found, reference)
        if equal is None and (not found.strip() or len(reference) > MAX_CHARACTERS):
            equal = False
        if equal is not None:
            return Verdict.CORRECT if equal else Verdict.INCORRECT
        if is_bomb(found) or is_bomb(reference):
            return Verdict.TIMEOUT
        text = found if boxed is None else f"\\boxed{{{found}}}"
        gold = f"\\boxed{{{reference.strip().strip('$')}}}"
        return _Request(index, text, gold, self.algebra_only)

    def _hand_out(self, queue: deque[_Request]) -> None:
        """Give every idle child a request; start children while requests wait."""
        for child in [c for c in self._children if c.ready and not c.request]:
            if queue and child.send(queue[0], self.timeout_s):
                queue.popleft()
            elif queue:  # it died while idle: not the request's fault
                self._drop(child)
        starting = sum(not c.ready for c in self._children)
        while len(self._children) < self.workers and starting < len(queue):
            self._children.append(_Child(self.timeout_s))
            starting += 1

    def _collect(self, verdicts: dict[int, Verdict]) -> None:
        """Wait for a reply, an end or a deadline, whichever is first, and record it."""
        active = [c for c in self._children if c.request or not c.ready]
        with selectors.DefaultSelector() as selector:
            for child in active:
                selector.register(child.replies, selectors.EVENT_READ, child)
            wait_s = min(c.deadline for c in active) - time.monotonic()
            readable = [key.data for key, _ in selector.select(max(0.0, wait_s))]
        for child in readable:
            self._on_reply(child, child.read(), verdicts)
        now = time.monotonic()
        for child in [c for c in active if c not in readable and c.deadline <= now]:
            self._on_end(child, Verdict.TIMEOUT, f"no sign of it in {START_S:g} s", verdicts)

    def _on_reply(
        self, child: _Child, reply: dict[str, Any] | None, verdicts: dict[int, Verdict]
    ) -> None:
        if reply == {}:  # half a line
            return
        if reply and not child.ready and reply.get("ready"):
            child.ready, self._failed_starts = True, 0
        elif reply and child.request and reply.get("id") == child.request.id:
            correct = reply.get("correct") is True
            verdicts[child.request.id] = Verdict.CORRECT if correct else Verdict.INCORRECT
            child.request = None
        else:
            reason = (reply or {}).get("error") or "it ended at once"
            self._on_end(child, Verdict.CRASH, reason, verdicts)

    def _on_end(
        self, child: _Child, verdict: Verdict, reason: str, verdicts: dict[int, Verdict]
    ) -> None:
        """A child is lost: its request, if it had one, gets ``verdict``."""
        self._drop(child)
        if child.request:
            verdicts[child.request.id] = verdict
            return
        self._failed_starts += 1
        if self._failed_starts >= START_TRIES:
            self._failed_starts = 0
            raise RuntimeError(
                f"the math verifier cannot start ({reason}): is math-verify[antlr4_13_2] installed "
                f"for {sys.executable}?"
            )

    def _drop(self, child: _Child) -> None:
        self._children.remove(child)
        child.kill()


@dataclass(frozen=True)
class _Request:
    """A question to a child process: does ``response`` equal ``answer`` (both LaTeX, boxed)?"""

    id: int  # position among the items
    response: str
    answer: str
    algebra_only: bool


class _Child:
    """One grader process, its pipes, and the request it works on."""

    def __init__(self, timeout_s: float) -> None:
        # Its environment holds no secret; the fixed hash seed makes verdicts reproducible.
        environment = {"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"}
        environment |= {k: os.environ[k] for k in ("LD_LIBRARY_PATH",) if k in os.environ}
        search_path = os.pathsep.join(p for p in sys.path if os.path.isabs(p))
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-s", str(WORKER), search_path, str(timeout_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            cwd="/",
            start_new_session=True,  # its own group to kill, and out of reach of Ctrl-C
            bufsize=0,
        )
        self._requests: Any = self._process.stdin
        self.replies: Any = self._process.stdout
        self.ready = False
        self.request: _Request | None = None
        self.deadline = time.monotonic() + START_S
        self._half_line = b""

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, request: _Request, timeout_s: float) -> bool:
        """False if the child is gone. The line is shorter than a pipe's buffer: never blocks."""
        line = json.dumps(asdict(request), ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        try:
            self._requests.write(line)
        except OSError:
            return False
        self.request, self.deadline = request, time.monotonic() + timeout_s
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
        self._requests.close()
        self.replies.close()


def _kill_all(children: list[_Child], owner: int) -> None:
    """``owner``: the process that started them; a fork of it must leave them alone."""
    while os.getpid() == owner and children:
        children.pop().kill()
