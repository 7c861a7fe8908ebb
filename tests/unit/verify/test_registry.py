"""Which verifier a row gets, and verifiers of the user's own."""

from __future__ import annotations

import pytest

from scope_megatron.config import VerifierConfig
from scope_megatron.rollout.verify import VERIFIERS, Verifiers, verifier_for
from scope_megatron.types import Prompt, Verdict

C, W = Verdict.CORRECT, Verdict.INCORRECT

GRADER = """
import os, time
print("loaded", flush=True)

def length(response, answer):
    if response == "raise":
        raise KeyError(response)
    if response == "hang":
        time.sleep(60)
    if response == "die":
        os._exit(0)
    if response == "odd":
        return None
    return float(len(response) == int(answer))
"""


def prompt(answer, source="", verifier=""):
    return Prompt(0, (1,), answer, source=source, verifier=verifier)


def test_each_row_goes_to_its_verifier():
    rows = [
        (r"\boxed{0.5}", prompt("1/2", "deepmath_new"), "math", C),
        ("#### 7", prompt("7", "openai/gsm8k"), "gsm8k", C),
        (r"\boxed{0.25}", prompt("1/4", "deepmath_new", "string"), "string", W),
        ("Answer: C", prompt("C", "Idavidrein/gpqa"), "choice", C),
        ("blue", prompt(("red", "blue"), verifier="exact"), "exact", C),
    ]
    prompts = [row[1] for row in rows]
    with Verifiers(VerifierConfig(), prompts) as verifiers:
        assert [verifiers.name(p) for p in prompts] == [row[2] for row in rows]
        assert verifiers.grade([row[:2] for row in rows]) == [row[3] for row in rows]
        assert verifiers.grade([row[:2] for row in rows[::-1]]) == [row[3] for row in rows[::-1]]
        assert verifiers.grade([]) == []
    with Verifiers(VerifierConfig(name="string"), prompts) as verifiers:  # graded anew, all alike
        assert {verifiers.name(p) for p in prompts} == {"string"}


def test_a_row_that_nobody_can_grade_is_told_at_once():
    with pytest.raises(ValueError, match=r"column says 'maths'; use one of math, exact"):
        Verifiers(VerifierConfig(), [prompt("1", verifier="maths")])
    with pytest.raises(ValueError, match=r"verifier\.custom: is missing"):
        Verifiers(VerifierConfig(), [prompt("1", verifier="custom")])
    with pytest.raises(ValueError, match=r"verifier\.custom: nowhere:f .*No module.*; give module"):
        Verifiers(VerifierConfig(name="custom", custom="nowhere:f"), [prompt("1")])


def test_names():
    assert verifier_for("zwhe99/DeepMath-103K") == "math"
    assert verifier_for("openai/gsm8k") == "gsm8k"
    assert verifier_for("livecodebench/code_generation_lite") == "code"
    assert verifier_for("BAAI/TACO") == "code"
    assert set(VERIFIERS) | {"auto"} == set(VerifierConfig.model_fields["name"].annotation.__args__)


def test_a_function_of_the_users(tmp_path, monkeypatch):
    (tmp_path / "own_grader.py").write_text(GRADER)
    monkeypatch.syspath_prepend(str(tmp_path))
    config = VerifierConfig(name="custom", custom="own_grader:length", timeout_s=1.0)
    said = ["abc", "ab", "raise", "odd", "die", "hang", "xyz"]
    with Verifiers(config, [prompt("3")]) as verifiers:
        verdicts = verifiers.grade([(text, prompt("3")) for text in said])
        assert verifiers.grade([("ab", prompt(("3", "2")))]) == [C]
        assert verifiers.grade([("x" * 500_000, prompt("500000"))]) == [C]
    crash = Verdict.CRASH
    assert verdicts == [C, W, crash, Verdict.REFUSED, crash, Verdict.TIMEOUT, C]
