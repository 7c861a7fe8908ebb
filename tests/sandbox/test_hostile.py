"""Hostile programs and algebra bombs among a thousand honest answers.

Nothing hostile is judged correct, nothing honest incorrect; each ends within its limit and a
second; no file, process or socket is left.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import socket
import time
from collections.abc import Generator
from pathlib import Path

import pytest

from scope_megatron.rollout.verify.mathematics import MathVerifier
from scope_megatron.rollout.verify.programs import CodeVerifier
from scope_megatron.rollout.verify.sandbox import Limits
from scope_megatron.rollout.verify.sandbox.pool import Job
from scope_megatron.types import Verdict
from tests.sandbox.hostile import BOMBS, CHEAT, ESCAPE, EXHAUST
from tests.sandbox.isolation import needs_isolation

pytestmark = needs_isolation

TIMEOUT_S = 2.0
BOMB_TIMEOUT_S = 2.0
LATE_S = 60.0  # on a busy machine; what does not end by its limit does not end at all
HONEST_PROGRAMS, HONEST_ANSWERS = 300, 700
MARK = f"mark-{secrets.token_hex(8)}"
SECRET = f"secret-{secrets.token_hex(8)}"
# An address space that no other sandbox of this machine has: it names this run's processes.
LIMITS = Limits(timeout_s=TIMEOUT_S, memory_bytes=(512 << 20) + os.getpid() * 4096)

STDIN = json.dumps({"inputs": ["7\n"], "outputs": [SECRET]})
CALL = json.dumps({"entry_point": "f", "inputs": [[7]], "outputs": [SECRET]})
ASSERT = json.dumps({"tests": [f"assert f(7) == {SECRET!r}", f"assert f(8) == {SECRET!r}"]})
CONTAINED = json.dumps({"inputs": [""], "outputs": ["contained"]})


def timed(job: Job, seconds: dict[str, float], name: str) -> Job:
    started = time.monotonic()
    verdict = yield from job
    seconds[name] = time.monotonic() - started
    return verdict


def honest(i: int) -> tuple[str, str]:
    """A right program, of five kinds."""
    n = i * 7919 % 1000
    if i % 5 == 0:
        tests = {"inputs": [f"{n} {i}\n"], "outputs": [str(n + i)]}
        return "a, b = map(int, input().split())\nprint(a + b)", json.dumps(tests)
    if i % 5 == 1:
        tests = {"entry_point": "f", "inputs": [[[n, i, 5]]], "outputs": [sorted([n, i, 5])]}
        return "class Solution:\n    def f(self, x): return sorted(x)", json.dumps(tests)
    if i % 5 == 2:
        tests = {"tests": [f"assert f({n}, k={i}) == ({n} * {i}, {{{n}}})"]}
        return "def f(n, k):\n    return n * k, {n}", json.dumps(tests)
    if i % 5 == 3:
        tests = {"inputs": [""], "outputs": [f"{n}"]}
        return (
            "import asyncio\nasync def main():\n    await asyncio.sleep(0)\n"
            f"    print({n})\nasyncio.run(main())",
            json.dumps(tests),
        )
    tests = {"inputs": ["ab\nc\n"], "outputs": [f"ba\nc\n{n}\n"]}
    return (
        "import sys, threading\n"
        "def main():\n    for line in sys.stdin: print(line.strip()[::-1])\n"
        f"    print({n})\n"
        "threading.stack_size(1 << 26)\nt = threading.Thread(target=main); t.start(); t.join()",
        json.dumps(tests),
    )


def cases(port: int) -> dict[str, tuple[str, str]]:
    """(program, tests) by name; a hostile program meets every kind of tests it may cheat."""
    found = {f"exhaust: {name}": (code, STDIN) for name, code in EXHAUST.items()}
    for name, code in CHEAT.items():
        for kind, tests in (("stdin", STDIN), ("call", CALL), ("assert", ASSERT)):
            found[f"cheat {kind}: {name}"] = (code, tests)
    for name, code in ESCAPE.items():
        for word, value in (("MARK", MARK), ("PARENT", os.getpid()), ("PORT", port)):
            code = code.replace(word, str(value))
        found[f"escape: {name}"] = (code.replace("HOME", str(Path.home())), CONTAINED)
    for i in range(HONEST_PROGRAMS):
        found[f"honest {i}"] = honest(i)
    return found


def left_processes() -> list[str]:
    marker = str(LIMITS.memory_bytes).encode()
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                command = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if marker in command:
                found.append(command.decode(errors="replace"))
    return found


def left_files() -> list[str]:
    places = ("/", "/usr", "/usr/lib", "/dev", "/dev/shm", "/etc", "/var/tmp", "/tmp", Path.home())
    return [f"{place}/{MARK}" for place in places if Path(place, MARK).exists()]


def open_files() -> set[str]:
    """What this process holds open, each by a name that no other has ("pipe:[inode]", a path).

    Sets, not numbers: what an earlier test left may be closed at any time by the collector.
    """
    found = set()
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            found.add(f"open: {os.readlink(f'/proc/self/fd/{descriptor}')}")
        except OSError:  # the listing's own
            continue
    return found


class Outcome:
    """Verdicts and seconds by name, and what was found afterwards."""

    def __init__(self) -> None:
        self.verdicts: dict[str, Verdict] = {}
        self.seconds: dict[str, float] = {}
        self.left: list[str] = []


@pytest.fixture(scope="module")
def outcome() -> Generator[Outcome]:
    """All programs, shuffled together, in one pool."""
    result = Outcome()
    before = open_files()
    Path(Path.home(), MARK).touch()
    folders = set(os.listdir("/tmp"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.0)
        names = cases(listener.getsockname()[1])
        order = sorted(names)
        random.Random(5).shuffle(order)
        verifier = CodeVerifier(LIMITS, workers=3)
        jobs = [
            timed(verifier.job(f"```python\n{names[n][0]}\n```", names[n][1]), result.seconds, n)
            for n in order
        ]
        result.verdicts = dict(zip(order, verifier.pool.run(jobs), strict=True))
        verifier.close()
        try:
            result.left.append(f"a connection of {listener.accept()[1]}")
        except BlockingIOError:
            pass
    Path(Path.home(), MARK).unlink()
    # a pool of another test's, in another process of pytest, closes its folder in this time, too
    places = {n for n in set(os.listdir("/tmp")) - folders if n.startswith("program-")}
    end = time.monotonic() + LATE_S
    while (left_processes() or places) and time.monotonic() < end:
        time.sleep(0.05)
        places &= set(os.listdir("/tmp"))
    result.left += left_processes() + left_files() + sorted(places)
    if MARK in Path("/proc/net/unix").read_text():
        result.left.append("an abstract socket")
    result.left += sorted(open_files() - before)
    yield result


@pytest.mark.timeout(400)
def test_nothing_is_left(outcome):
    assert outcome.left == []


def test_honest_programs_are_correct(outcome):
    wrong = {n: v for n, v in outcome.verdicts.items() if n.startswith("honest") and v != "correct"}
    assert wrong == {}


@pytest.mark.parametrize("name", EXHAUST)
def test_exhausting_programs_end(outcome, name):
    assert outcome.verdicts[f"exhaust: {name}"] is not Verdict.CORRECT
    assert outcome.seconds[f"exhaust: {name}"] <= TIMEOUT_S + LATE_S


@pytest.mark.parametrize("kind", ["stdin", "call", "assert"])
@pytest.mark.parametrize("name", CHEAT)
def test_cheating_programs_are_not_correct(outcome, name, kind):
    assert outcome.verdicts[f"cheat {kind}: {name}"] is not Verdict.CORRECT
    assert outcome.seconds[f"cheat {kind}: {name}"] <= TIMEOUT_S + LATE_S


@pytest.mark.parametrize("name", ESCAPE)
def test_escapes_are_contained(outcome, name):
    """Correct here means: the program ran to its end, and nothing it tried succeeded."""
    assert outcome.verdicts[f"escape: {name}"] is Verdict.CORRECT
    assert outcome.seconds[f"escape: {name}"] <= TIMEOUT_S + LATE_S


@pytest.mark.parametrize("name", ["home", "socket to the host", "listening socket"])
def test_these_programs_would_get_out(tmp_path, name):
    """Without isolation the same programs do get out, so the tests above can fail."""
    Path(tmp_path, ".bashrc").touch()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        code = ESCAPE[name].replace("PORT", str(listener.getsockname()[1]))
        code = code.replace("HOME", str(tmp_path))
        with CodeVerifier(LIMITS, isolated=False) as verifier:
            verdicts = verifier.grade([(f"```python\n{code}\n```", CONTAINED)])
    assert verdicts == [Verdict.INCORRECT]


def test_bombs_among_honest_answers():
    box = "So it is $\\boxed{{{}}}$.".format
    right = [(box(rf"\frac{{{i}}}{{{i + 1}}}"), f"{2 * i}/{2 * i + 2}") for i in range(1, 351)]
    wrong = [(box(rf"\frac{{{i}}}{{{i + 1}}}"), f"{2 * i}/{2 * i + 3}") for i in range(1, 351)]
    assert len(right) + len(wrong) == HONEST_ANSWERS
    items = [(item, Verdict.CORRECT) for item in right] + [(i, Verdict.INCORRECT) for i in wrong]
    items += [((box(bomb), "4"), None) for bomb in BOMBS]
    random.Random(5).shuffle(items)
    with MathVerifier(timeout_s=BOMB_TIMEOUT_S, workers=2) as verifier:
        started = time.monotonic()
        verdicts = verifier.grade([item for item, _ in items])
        total = time.monotonic() - started
        pids = [child.pid for child in verifier.processes.children]
        seconds = []
        for bomb in BOMBS:
            verifier.grade([(box("0.5"), "1/2")])  # a child waits
            started = time.monotonic()
            verifier.grade([(box(bomb), "4")])
            seconds.append(time.monotonic() - started)
    for (item, expected), verdict in zip(items, verdicts, strict=True):
        if expected is None:
            assert verdict is not Verdict.CORRECT, item
        else:
            assert verdict is expected, item
    assert max(seconds) <= BOMB_TIMEOUT_S + LATE_S
    assert total <= 600.0
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
