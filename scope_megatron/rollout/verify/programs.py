"""Programs: the code in a response passes the tests of its row, in a sandbox."""

from __future__ import annotations

import ast
import json
import math
import re
import time
from collections.abc import Generator
from itertools import zip_longest

from scope_megatron.data.code_tests import CodeTests, read_tests
from scope_megatron.rollout.verify.sandbox import Exchange, Limits, Pool, Reply
from scope_megatron.rollout.verify.sandbox.pool import Job, framed
from scope_megatron.types import Answer, Verdict, accepted

MAX_SOURCE = 1 << 16  # characters of a program

_FENCE = re.compile(
    r"^[ \t]*+```[ \t]*+([\w+-]*+)[^\n]*+\n(.*?)(?:^[ \t]*+```|\Z)", re.DOTALL | re.MULTILINE
)
_PYTHON = frozenset({"", "python", "python3", "py", "py3", "python2"})


class CodeVerifier:
    """Runs the program of each response against its row's tests (``code_tests``).

    A response is CORRECT if its program passes all tests. INCORRECT: no program, an exception, an
    exit code that is not 0, output that is wrong, incomplete or endless. TIMEOUT: one test took
    longer than ``limits.timeout_s`` seconds, or all of them longer than ``total_timeout_s``.
    CRASH: the program was killed from outside, by the system for want of memory, say. REFUSED: the
    row's tests cannot be read or checked nothing, or the program has more than ``MAX_SOURCE``
    characters.

    Every test on standard input runs in a fresh process; tests that call functions have one
    process for the program and one for the tests. What a test expects never enters the first.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        workers: int = 1,
        total_timeout_s: float = 60.0,
        isolated: bool = True,
    ) -> None:
        """Raises NoIsolation where programs cannot be isolated (and ``isolated`` is not False)."""
        self.total_timeout_s = total_timeout_s
        self.pool = Pool(limits or Limits(), workers, isolated)

    def __enter__(self) -> CodeVerifier:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes."""
        self.pool.close()

    def grade(self, items: list[tuple[str, Answer]]) -> list[Verdict]:
        """One verdict per (response text, tests as JSON text), in order. Of several accepted
        answers the first counts: a program has one set of tests."""
        jobs = [self.job(response, accepted(answer)[0]) for response, answer in items]
        return self.pool.run(jobs)

    def job(self, response: str, answer: str) -> Job:
        """What the pool runs for one response."""
        source = program(response)
        try:
            tests = read_tests(answer)
        except ValueError:
            return _decided(Verdict.REFUSED)
        if source is None:
            return _decided(Verdict.INCORRECT)
        if len(source) > MAX_SOURCE:
            return _decided(Verdict.REFUSED)
        source = f"{tests.setup}\n{source}" if tests.setup else source
        clock = _Clock(self.pool.limits.timeout_s, self.total_timeout_s)
        if tests.kind == "stdin":
            return _stdin_job(source, tests, clock)
        try:
            header = framed(_referee_header(tests))
        except RecursionError:
            return _decided(Verdict.REFUSED)
        return _referee_job(source, header, clock)


def program(response: str) -> str | None:
    """The program in a response: its last block of Python code, after any thinking; the whole
    text where there is no block and it is Python. None without one."""
    text = response.rpartition("</think>")[2]
    blocks = [body for language, body in _FENCE.findall(text) if language.lower() in _PYTHON]
    if blocks:
        return str(blocks[-1])
    if "```" in text or not text.strip() or len(text) > MAX_SOURCE:
        return None
    try:
        ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return text


class _Clock:
    """Seconds that the next exchange may take."""

    def __init__(self, each_s: float, total_s: float) -> None:
        self.each_s, self.total_s = each_s, total_s
        self._end: float | None = None

    def left(self) -> float:
        if self._end is None:  # the job starts now, not when it was made
            self._end = time.monotonic() + self.total_s
        return min(self.each_s, self._end - time.monotonic())


def _decided(verdict: Verdict) -> Job:
    return verdict
    yield Exchange("", b"", 0.0)  # never reached: it makes this a generator


def _stdin_job(source: str, tests: CodeTests, clock: _Clock) -> Job:
    """A fresh process for each test; the first that fails decides."""
    header = framed({"mode": "script", "source": source})
    for given, expected in zip(tests.inputs, tests.outputs, strict=True):
        seconds = clock.left()
        if seconds <= 0:
            return Verdict.TIMEOUT
        data = header + given.encode("utf-8", "surrogatepass")
        reply = yield Exchange("program", data, seconds, whole=True, fresh=True)
        if reply.how != "end" or reply.status != 0:
            return _failure(reply)
        if not same_output(reply.data.decode("utf-8", "replace"), expected):
            return Verdict.INCORRECT
    return Verdict.CORRECT


def _referee_job(source: str, said: bytes, clock: _Clock) -> Job:
    """The tests ask, the program answers, and neither sees the other's memory. ``said``: the
    tests, as they are handed over."""
    while True:
        reply = yield Exchange("referee", said, clock.each_s)
        if reply.how != "line":  # the tests themselves hang or die, on what the program gave them
            return Verdict.TIMEOUT if reply.how == "timeout" else Verdict.INCORRECT
        kind, content = reply.data[:1], reply.data[1:]
        if kind == b"D":
            verdict = json.loads(content)
            if verdict == "unreadable":
                return Verdict.REFUSED
            return Verdict.CORRECT if verdict == "passed" else Verdict.INCORRECT
        reply = yield from _ask(source, content, clock)
        if reply.how != "line":
            return _failure(reply)
        said, source = reply.data, ""


def _ask(source: str, question: bytes, clock: _Clock) -> Generator[Exchange, Reply, Reply]:
    """The program's reply; ``source`` goes before the first question."""
    data = framed({"mode": "calls", "source": source}) + question if source else question
    seconds = clock.left()
    if seconds <= 0:
        return Reply("timeout", b"")
    reply = yield Exchange("program", data, seconds)
    return reply


def _referee_header(tests: CodeTests) -> dict[str, object]:
    header: dict[str, object] = {"mode": "referee", "source": "", "entry_point": tests.entry_point}
    if tests.kind == "call":
        return header | {"inputs": tests.inputs, "outputs": tests.outputs}
    return header | {"setup": tests.test_setup, "tests": tests.tests}


def _failure(reply: Reply) -> Verdict:
    """What an exchange means that did not end well. What a program may say of its own end is an
    exit status like any other: it could say so to have the response masked."""
    if reply.how == "timeout":
        return Verdict.TIMEOUT
    return Verdict.CRASH if reply.status < 0 else Verdict.INCORRECT


def same_output(printed: str, expected: str) -> bool:
    """Whether a program printed what was expected: the same words in the same lines, white space
    at the ends of lines and of the output aside. Numbers with a fractional part may differ by
    1e-6, absolute or relative."""
    one, other = printed.strip(), expected.strip()
    if one == other:
        return True
    # Line by line up to the first that differs: the rest may be millions that a model wrote.
    lines = zip_longest(_LINE.finditer(one), _LINE.finditer(other))
    return all(a is not None and b is not None and _same_line(a[1], b[1]) for a, b in lines)


_ENDS = r"\n\r\v\f\x1c-\x1e\x85\u2028\u2029"  # str.splitlines'
_LINE = re.compile(rf"([^{_ENDS}]*)(?:\r\n|[{_ENDS}]|\Z)")


def _same_line(printed: str, expected: str) -> bool:
    words = expected.split()
    found = printed.split(None, len(words))
    return len(found) == len(words) and all(map(_same_word, found, words))


_DECIMAL = re.compile(r"[+-]?\d{0,40}\.?\d{0,40}(?:[eE][+-]?\d{1,3})?")


def _same_word(printed: str, expected: str) -> bool:
    if printed == expected:
        return True
    if not set(expected) & set(".eE"):
        return False
    if not (_DECIMAL.fullmatch(printed) and _DECIMAL.fullmatch(expected)):
        return False
    try:
        a, b = float(printed), float(expected)
    except ValueError:
        return False
    return math.isfinite(b) and abs(a - b) <= 1e-6 * max(1.0, abs(b))
