"""The math verifier: what it calls equal, and that nothing a model writes can hold it up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from scope_megatron.rollout.verify.answer import (
    boxed_answers,
    equal_as_text,
    is_bomb,
    last_boxed,
)
from scope_megatron.rollout.verify.mathematics import MathVerifier
from scope_megatron.types import Verdict

C, W, T = Verdict.CORRECT, Verdict.INCORRECT, Verdict.TIMEOUT
ROOT = Path(__file__).parents[3]
SLOW = r"(x+1)^{100000}"  # no tower of powers, so only the clock stops it


def box(answer: str) -> str:
    return f"So the answer is $\\boxed{{{answer}}}$."


def alive(pid: int) -> bool:
    """Whether ``pid`` runs (a zombie that nobody reaped does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


@pytest.fixture(scope="module")
def verifier():
    with MathVerifier(timeout_s=10.0) as v:
        yield v


GRADED = [
    (box(r"\frac{1}{2}"), "1/2", C),
    (box("0.5"), r"\frac{1}{2}", C),
    (box(r"\dfrac12"), "0.5", C),
    (box(r"2n^2 + 1"), r"1 + 2 n^2", C),
    (box(r"\left(\frac{20}{3}, 0\right)"), r"(20/3, 0)", C),
    (box(r"\begin{bmatrix} 0 & 1 \\ 1 & 0 \end{bmatrix}"),
     r"\begin{pmatrix} 0 & 1 \\ 1 & 0 \end{pmatrix}", C),
    (box(r"\text{yes}"), "Yes", C),
    (box("007"), "7", C),
    (box("1,000"), "1000", C),
    (box("42"), r"$\boxed{42}$", C),
    (box(r"\boxed{ \boxed{3} }"), "3", C),
    (r"first \boxed{4}, no: \boxed{3}", "3", C),
    (r"first \boxed{3}, no: \boxed{4}", "3", W),
    (box("0.51"), r"\frac{1}{2}", W),
    (box("[0, 1)"), "(0, 1)", W),
    (box("No"), "Yes", W),
    (box("12"), "1 2", W),
    (box(""), "3", W),
    (box("1,22"), "1.22", C),
    (box("1.22"), "1,22", C),
    (box("1,222"), "1.222", W),
    (r"\boxed{1} and \boxed{22}", "1.22", W),
    (r"So $\\boxed{\\frac{1}{2}}$", "0.5", C),  # backslashes doubled, as in JSON
    ("The answer is 3.", "3", W),
    (r"cut off at \boxed{3", "3", W),
    (r"\boxed{3}" + " and so on" * 500, "3", W),  # further back than what counts
]  # fmt: skip


SEVERAL = [
    (r"The integers are $\boxed{-2}$ and $\boxed{1}$.", "1, -2", C),
    (r"\[ \boxed{-2} \quad \text{and} \quad \boxed{1}. \]", r"\{1, -2\}", C),
    (r"\boxed{1}, \boxed{2}, and \boxed{3}", r"\boxed{1}\boxed{2}\boxed{3}", C),
    (r"$x = \boxed{1}$, $y = \boxed{\tfrac{4}{2}}$", "(1, 2)", C),
    (r"$x_1 = \boxed{\sqrt{12}}$ or $x_2 = \boxed{-2\sqrt3}$", r"\pm 2\sqrt{3}", C),
    (r"\boxed{k = 45} and \boxed{n = 2}", "k = 45, n = 2", C),
    (r"\boxed{0.5} or \boxed{\frac{1}{2}}", r"\frac12", C),  # one value in two spellings
    (r"\boxed{\boxed{1} and \boxed{2}}", "1, 2", C),
    (r"\\boxed{1} \\quad \\boxed{2}", "1, 2", C),  # backslashes doubled
    (r"\boxed{1} and \boxed{2}", "2", W),  # a guess at both is not the one
    (r"\boxed{1} or \boxed{2}", "1", W),
    (r"\boxed{1} and \boxed{2}", "1, 2, 3", W),
    (r"\boxed{1} and \boxed{3}", "1, 2", W),
    (r"$x = \boxed{2}$, $y = \boxed{1}$", "(1, 2)", W),
    (r"we get \boxed{4}, so the answer is \boxed{5}", "5", C),
    (r"we get \boxed{4}, so the answer is \boxed{5}", "4, 5", W),
    (r"\boxed{4}. Wait, I forgot one and must say \boxed{5}", "5", C),
    (r"\boxed{4} = \boxed{5}", "5", C),
    (r"The answer is \boxed{7}. To repeat, \boxed{7}", "7", C),
]


@pytest.mark.parametrize(("response", "answer", "expected"), SEVERAL)
def test_several_boxes_of_one_statement(verifier, response, answer, expected):
    assert verifier.grade([(response, answer)]) == [expected]


def test_each_accepted_answer_is_enough(verifier):
    answers = ("1/2", "50\\%", "one half")
    said = [box("0.5"), box(r"\frac{2}{4}"), box(r"\text{one half}"), box("2")]
    assert verifier.grade([(text, answers) for text in said]) == [C, C, C, W]


@pytest.mark.parametrize(("response", "answer", "expected"), GRADED)
def test_verdicts(verifier, response, answer, expected):
    assert verifier.grade([(response, answer)]) == [expected]


def test_order_is_kept_over_several_children():
    items = [(box(rf"\frac{{{i}}}{{7}}"), f"{i + i % 2}/7") for i in range(40)]
    with MathVerifier(timeout_s=10.0, workers=2) as v:
        assert v.grade(items) == [W if i % 2 else C for i in range(40)]


def test_without_the_box_rule_the_answer_is_searched():
    with MathVerifier(timeout_s=10.0, require_boxed=False) as v:
        assert v.grade([("The final answer is $\\frac{2}{4}$", "1/2")]) == [C]


def test_equal_texts_prove_nothing_to_the_algebra():
    item = (box("I + tE_{a,b}"), "I + tE_{a,b}")
    with MathVerifier() as both, MathVerifier(algebra_only=True) as algebra:
        assert both.grade([item]) == [C]
        assert algebra.grade([item]) == [W]


@pytest.mark.parametrize("bomb", ["5^{5^{5^{5^{5}}}}", "1000000000!", SLOW])
def test_a_bomb_ends_in_time_and_harms_no_other(bomb):
    with MathVerifier(timeout_s=1.0) as v:
        assert v.grade([(box("0.5"), "1/2")]) == [C]  # its child has started
        started = time.monotonic()
        assert v.grade([(box(bomb), "4")]) == [T]
        seconds = time.monotonic() - started
        assert v.grade([(box(bomb), "4"), (box("0.25"), r"\frac14")]) == [T, C]
    assert seconds < 30, f"took {seconds:.1f} s: some of them run for minutes when left alone"


def test_a_killed_child_costs_only_its_item():
    with MathVerifier(timeout_s=60.0) as v:
        result: list[Verdict] = []
        items = [(box("0.5"), "1/2"), (box(SLOW), "4"), (box("0.25"), "1/4")]
        grading = threading.Thread(target=lambda: result.extend(v.grade(items)))
        grading.start()
        busy = lambda: [c for c in v.processes.children if c.request and c.request["id"] == 1]  # noqa: E731
        assert wait_until(busy, 20.0)
        os.kill(busy()[0].pid, signal.SIGKILL)
        grading.join(20.0)
        assert result == [C, Verdict.CRASH, C]


def test_a_child_that_dies_idle_costs_nothing():
    with MathVerifier(timeout_s=10.0) as v:
        assert v.grade([(box("0.5"), "1/2")]) == [C]
        pid = v.processes.children[0].pid
        os.kill(pid, signal.SIGKILL)
        assert wait_until(lambda: not alive(pid), 5.0)
        assert v.grade([(box("0.5"), "1/2")]) == [C]


def test_no_child_is_left_after_close():
    with MathVerifier(timeout_s=10.0, workers=2) as v:
        v.grade([(box("0.5"), "1/2"), (box("0.25"), "1/4")])
        pids = [c.pid for c in v.processes.children]
        assert pids and all(alive(p) for p in pids)
    assert not any(alive(p) for p in pids)


@pytest.mark.parametrize("work", [r"\boxed{0.5}", rf"\boxed{{{SLOW}}}"], ids=["idle", "busy"])
def test_children_die_with_their_parent(work):
    """Killed outright, the parent cannot end them itself."""
    program = f"""
import threading, time
from scope_megatron.rollout.verify.mathematics import MathVerifier
v = MathVerifier(timeout_s=1.5)
threading.Thread(target=v.grade, args=([(r"{work}", "1/2")],), daemon=True).start()
while not any(c.ready for c in v.processes.children): time.sleep(0.01)
time.sleep(0.3)
print(v.processes.children[0].pid, flush=True)
time.sleep(60)
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    pid = int(parent.stdout.readline())
    assert alive(pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert wait_until(lambda: not alive(pid), 20.0)


def test_a_grader_that_cannot_start_is_an_error_not_a_verdict(monkeypatch, tmp_path):
    broken = tmp_path / "worker.py"
    broken.write_text('print(\'{"error": "ModuleNotFoundError: no math_verify"}\')')
    monkeypatch.setattr("scope_megatron.rollout.verify.mathematics.WORKER", broken)
    with MathVerifier() as v, pytest.raises(RuntimeError, match="no math_verify"):
        v.grade([(box("0.5"), "1/2")])


def test_the_child_sees_no_secret(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    with MathVerifier(timeout_s=10.0) as v:
        v.grade([(box("0.5"), "1/2")])
        assert b"secret" not in Path(f"/proc/{v.processes.children[0].pid}/environ").read_bytes()


def test_text_rules():
    assert last_boxed(r"\boxed{\boxed{1} and \boxed{2}}") == r"\boxed{1} and \boxed{2}"
    assert last_boxed(r"\boxed{\left\{ 1 \right\}}") == r"\left\{ 1 \right\}"
    assert last_boxed(r"\boxed{3 \boxed{4}") == "4"
    assert last_boxed("boxed{3}") is None
    assert boxed_answers(r"\boxed{1}, \fbox{2} and \boxed{1}") == ["1", "2"]
    assert boxed_answers(r"\boxed{3} \implies \boxed{4}") == ["4"]
    assert boxed_answers("3") == []
    assert boxed_answers(r"a \\ \boxed{1} \\ \boxed{2}") == ["1", "2"]
    assert equal_as_text("2\\pi  i", "2 \\pi i") is True
    assert equal_as_text("1 2", "12") is None
    assert equal_as_text("8", "9") is False
    assert not is_bomb(r"101^{99}") and not is_bomb(r"10^{10^{-10}}")
    assert is_bomb(r"9^{9^{9}}") and is_bomb("2^(10^(9))")
