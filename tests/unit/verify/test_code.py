"""Programs against tests in the forms that datasets publish, and what each end of one means."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest

from scope_megatron.config import VerifierConfig
from scope_megatron.data.code_tests import read_tests
from scope_megatron.rollout.verify import Verifiers
from scope_megatron.rollout.verify.programs import CodeVerifier, program, same_output
from scope_megatron.rollout.verify.sandbox import Limits, NoIsolation, bubblewrap, pool
from scope_megatron.rollout.verify.sandbox.seccomp import filter_program
from scope_megatron.types import Prompt, Verdict
from tests.sandbox.isolation import needs_isolation

C, W = Verdict.CORRECT, Verdict.INCORRECT
DOUBLE = {"inputs": ["3\n", "-4\n"], "outputs": ["6\n", "-8\n"]}
HUMANEVAL = {
    "prompt": "import math\nfrom typing import List\n\n\ndef half(x):\n    return x / 2\n\n\n"
    'def mean(xs: List[float]) -> float:\n    """The mean."""\n',
    "entry_point": "mean",
    "test": "METADATA = {}\n\n\ndef check(candidate):\n"
    "    assert abs(candidate([1.0, 2.0]) - half(3.0)) < 1e-6\n"
    "    for i in range(3):\n        assert math.isclose(candidate([i, i]), i)\n"
    "    try:\n        candidate([])\n        assert False\n    except ZeroDivisionError:\n"
    "        pass\n",
}
MBPP = {
    "test_setup_code": "root = Node(1)\nroot.next = Node(2)",
    "test_list": [
        "assert length(root) == 2",
        "assert set(pair(3, 4)) == {3, 4}",
        "assert list(count(2)) == [0, 1]",
    ],
}
NODE = """
class Node:
    def __init__(self, value): self.value, self.next = value, None
def length(node): return 1 + length(node.next) if node else 0
def pair(a, b): return (a, b)
def count(n): yield from range(n)
"""
REVERSED = {"entry_point": "f", "tests": ["a = [1, 2]\nf(a)\nassert a == [2, 1]"]}
LEETCODE = {"fn_name": "find", "inputs": [[[2, 7], 9]], "outputs": [[[0, 1]]]}
LIVECODEBENCH = [
    {"input": "1 2\n", "output": "3", "testtype": "stdin"},
    {"input": "5 5\n", "output": "10", "testtype": "stdin"},
]


pytestmark = needs_isolation


@pytest.fixture(scope="module")
def verifier():
    with CodeVerifier(Limits(timeout_s=4.0)) as v:
        yield v


@pytest.mark.parametrize(
    ("code", "tests", "expected"),
    [
        ("print(2 * int(input()))", DOUBLE, C),
        ("if __name__ == '__main__':\n    print(2 * int(input()))\n    exit()", DOUBLE, C),
        ("print(6)", DOUBLE, W),
        ("import numpy as np\nprint(int(np.sum([int(input())] * 2)))", DOUBLE, C),
        ("print(2 * int(input()), end=' ')\nprint()", DOUBLE, C),
        ("print(2 * int(input()))\nraise SystemExit(1)", DOUBLE, W),
        ("print(2 * int(input()))\n1 / 0", DOUBLE, W),
        ("def (", DOUBLE, W),
        ("", DOUBLE, W),
        ("def mean(xs: List[float]): return half(sum(xs)) / len(xs) * 2", HUMANEVAL, C),
        ("def mean(xs): return sum(xs) / max(1, len(xs))", HUMANEVAL, W),
        ("def average(xs): return sum(xs) / len(xs)", HUMANEVAL, W),
        (NODE, MBPP, C),
        (NODE.replace("range(n)", "range(n + 1)"), MBPP, W),
        ("def f(a):\n    print('noise')\n    a.reverse()", REVERSED, C),
        ("def f(a): return a[::-1]", REVERSED, W),
        ("class Solution:\n    def find(self, a, t): return (0, 1)", LEETCODE, C),
        ("def find(a, t): return [0, 1]", LEETCODE, C),
        ("def find(a, t): return [1, 0]", LEETCODE, W),
        ("print(sum(map(int, input().split())))", LIVECODEBENCH, C),
        ("import time\ntime.sleep(60)", DOUBLE, Verdict.TIMEOUT),
        ("def find(a, t):\n    while True: pass", LEETCODE, Verdict.TIMEOUT),
        ("import os\nos.kill(os.getpid(), 9)", DOUBLE, W),
        ("import os\nos._exit(137)", DOUBLE, W),  # as if it had been killed
        ("import os\nos._exit(152)", DOUBLE, W),  # as if its time had been up
        ("import os\ndef find(a, t): os._exit(137)", LEETCODE, W),
        ("import os\ndef find(a, t): os._exit(152)", LEETCODE, W),
        ("#" * 100_000, DOUBLE, Verdict.REFUSED),
    ],
)  # fmt: skip
def test_graded(verifier, code, tests, expected):
    assert verifier.grade([(f"Here:\n```python\n{code}\n```", json.dumps(tests))]) == [expected]


@pytest.mark.parametrize(
    "tests",
    [
        "no JSON",
        "3",
        "{}",
        "[]",
        json.dumps({"inputs": ["1"], "outputs": []}),
        json.dumps({"tests": ["assert ("]}),
        json.dumps({"tests": ["assert f() == 1"], "test_imports": 5}),
        json.dumps({"fn_name": "f", "inputs": ["[" * 5000], "outputs": [1]}),
        json.dumps([{"input": "1", "output": "1", "testtype": "functional"}]),
    ],
)
def test_tests_that_cannot_be_read_are_refused(verifier, tests):
    assert verifier.grade([("```python\ndef f(): pass\n```", tests)]) == [Verdict.REFUSED]


def test_arguments_nested_as_deeply_as_can_be_read(verifier):
    """They can be read in one place, and not written in another that is called from deeper."""
    depths = range(sys.getrecursionlimit() - 60, sys.getrecursionlimit())
    nested = ['{"fn_name": "f", "inputs": [[' + "[" * n + "]" * n + "]]" for n in depths]
    items = [("def f(x): return x", f'{text}, "outputs": [1]}}') for text in nested]
    assert set(verifier.grade(items)) <= {Verdict.INCORRECT, Verdict.REFUSED}


def test_a_processor_limit_of_the_programs_own():
    """The kernel kills it then, as it would one that it has no memory for."""
    with CodeVerifier(Limits(timeout_s=60.0)) as v:
        code = "```python\nimport resource\nresource.setrlimit(0, (1, 1))\nwhile True: pass\n```"
        assert v.grade([(code, json.dumps(DOUBLE))]) == [W]


def test_a_program_that_kills_itself_without_a_sandbox():
    with CodeVerifier(Limits(timeout_s=20.0), isolated=False) as v:
        killed = "```python\nimport os\nos.kill(os.getpid(), 9)\n```"
        assert v.grade([(killed, json.dumps(DOUBLE))]) == [W]


@pytest.mark.parametrize("outside", [False, True])
def test_a_program_that_the_system_kills_has_crashed(monkeypatch, tmp_path, outside):
    """For want of memory the kernel kills it, and counts that, or its sandbox from outside."""
    count = tmp_path / "vmstat"
    count.write_text("pgfault 5\noom_kill 3\n")
    monkeypatch.setattr(pool, "KERNEL_COUNTS", count)
    code = "import os, time\ntime.sleep(3)\n" + ("time.sleep(60)" if outside else "os._exit(137)")
    with CodeVerifier(Limits(timeout_s=30.0)) as v:
        waiting = [(f"```python\n{code}\n```", json.dumps(DOUBLE))]
        with ThreadPoolExecutor() as threads:
            verdicts = threads.submit(v.grade, waiting)
            while not (running := [p for p in v.pool._alive if p.ready]):
                time.sleep(0.01)
            count.write_text("pgfault 9\noom_kill 4\n")
            if outside:
                os.killpg(running[0]._popen.pid, signal.SIGKILL)
            assert verdicts.result() == [Verdict.CRASH]


def test_large_input_and_output(verifier):
    numbers = "\n".join(map(str, range(100_000)))
    tests = json.dumps({"inputs": [numbers], "outputs": [numbers]})
    code = "```python\nimport sys\nsys.stdout.write(sys.stdin.read())\n```"
    assert verifier.grade([(code, tests)]) == [C]


def test_all_tests_together_have_a_limit():
    tests = json.dumps({"inputs": [""] * 20, "outputs": ["x"] * 20})
    code = "```python\nimport time\ntime.sleep(0.3)\nprint('x')\n```"
    with CodeVerifier(Limits(timeout_s=4.0), total_timeout_s=1.0) as v:
        assert v.grade([(code, tests)]) == [Verdict.TIMEOUT]


def test_the_program_in_a_response():
    assert program("```python\na\n```\nor\n```py\nb\n```") == "b\n"
    assert program("<think>```python\na\n```</think>\n```\nb\n```") == "b\n"
    assert program("```python\na\n```\nprints\n```text\n1\n```") == "a\n"
    assert program("```python\ncut = off") == "cut = off"
    assert program("print(1)") == "print(1)"
    assert program("It cannot be done.") is None
    assert program("```cpp\nint main() {}\n```") is None


def test_what_counts_as_the_same_output():
    assert same_output("1  2 \n3\n\n", "1 2\n3")
    assert same_output("0.33333333", "0.333333333333")
    assert same_output("1e-3", "0.001")
    assert not same_output("1 2 3", "1 2\n3")
    assert not same_output("1", "1.5")
    assert not same_output("1000001", "1000002")
    assert not same_output("yes", "YES")
    assert not same_output("", "1")


@pytest.mark.parametrize("printed", ["a\n", "a ", "1\n2 ", "\x85", "a\u2028"])
def test_comparing_output_costs_what_was_expected(printed):
    """It is the trainer's memory: eight million characters were 500 MiB of lists."""
    printed = "1\n" + printed * (8_000_000 // len(printed)) + "\n3"
    tracemalloc.start()
    try:
        assert not same_output(printed, "1\n2\n3")
        assert tracemalloc.get_traced_memory()[1] < 3 * sys.getsizeof(printed)
    finally:
        tracemalloc.stop()


def test_what_separates_lines_and_words():
    ends = "\n \r\n \r \v \f \x1c \x85 \u2028".split(" ")
    for end in ends:
        assert same_output(f"1{end}2 3{end}{end}", "\n1\n2\t3\u00a0\n")
        assert not same_output(f"1{end}2{end}3", "1\n2 3")
        assert not same_output(f"1{end}{end}2", "1\n2") or end == "\r\n"
    assert same_output("1\r\n\r\n2", "1\n\n2")
    assert not same_output("1\n2\n3 4", "1\n2\n3")
    assert not same_output("1\n2\n3", "1\n2\n3 4")
    assert not same_output("1\n2\n3", "1\n2") and not same_output("1\n2", "1\n2\n3")


def test_published_forms_are_read():
    assert read_tests(json.dumps(LIVECODEBENCH)).inputs == ("1 2\n", "5 5\n")
    assert read_tests(json.dumps(LEETCODE)).kind == "call"
    assert read_tests(json.dumps(HUMANEVAL)).setup.startswith("import math")
    assert read_tests(json.dumps(["assert f(1) == 2"])).kind == "assert"


def test_without_isolation_code_is_refused(monkeypatch, tmp_path):
    """No bwrap, or one that isolates nothing: the run ends before it starts, with the fix."""
    rows = [Prompt(0, (1,), json.dumps(DOUBLE), source="mbpp")]
    fake = tmp_path / "bwrap"
    fake.write_text(
        '#!/bin/sh\nwhile [ "$1" != -I ]; do python="$1"; shift; done\n'
        "while [ $# -gt 2 ]; do shift; done\n"
        f'exec "$python" -I -S -B -X utf8 {bubblewrap.INSIDE} "$1" "$2"\n'
    )
    fake.chmod(0o755)
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    for path, reason in ((nothing, "not installed"), (tmp_path, "it sees files of this machine")):
        monkeypatch.setenv("PATH", str(path))
        bubblewrap.require_isolation.cache_clear()
        with pytest.raises(NoIsolation, match=f"{reason}.*run_without_isolation=true"):
            Verifiers(VerifierConfig(), rows)
        allowed = VerifierConfig(code={"run_without_isolation": True})
        with Verifiers(allowed, rows) as verifiers:
            code = "```python\nprint(2 * int(input()))\n```"
            assert verifiers.grade([(code, rows[0])]) == [C]
    monkeypatch.undo()
    bubblewrap.require_isolation.cache_clear()


def test_filters_of_system_calls():
    assert len(filter_program("x86_64")) % 8 == 0 and filter_program("aarch64")
    with pytest.raises(NotImplementedError, match="riscv64"):
        filter_program("riscv64")
