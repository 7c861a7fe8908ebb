"""Responses are graded while others are still sampled."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from scope_megatron.config import VerifierConfig
from scope_megatron.data.tokenizer import load_tokenizer
from scope_megatron.rollout.grading import Grading
from scope_megatron.rollout.verify import Verifiers
from scope_megatron.types import Prompt, Rollout, Verdict

TOKENIZER = load_tokenizer(Path(__file__).parents[2] / "assets" / "tiny-teacher")
PROMPT = Prompt(0, (1, 2), "2")


def rollout(said: str, prompt: Prompt = PROMPT) -> Rollout:
    return Rollout(prompt, 0, [*TOKENIZER.encode(f"\\boxed{{{said}}}"), TOKENIZER.eos_id], [], True)


def test_a_verdict_comes_before_the_last_response() -> None:
    """The first response is graded while the second has not been handed over."""
    graded = threading.Event()
    with Verifiers(VerifierConfig(), [PROMPT]) as verifiers:
        grading = Grading(verifiers, TOKENIZER, lambda _: graded.set())
        first, second = rollout("2"), rollout("3")
        grading.put(first)
        assert graded.wait(30)
        assert (first.verdict, second.verdict) == (Verdict.CORRECT, None)
        grading.put(second)
        grading.finish()
    assert second.verdict is Verdict.INCORRECT
    assert "boxed{3}" in second.text.replace(" ", "")


def test_a_response_that_takes_its_time_limit_delays_the_others_once() -> None:
    config = VerifierConfig(timeout_s=1.0, workers=2)
    bomb = Prompt(1, (1, 2), "(x+1)^{100000}")
    with Verifiers(config, [PROMPT]) as verifiers:
        grading = Grading(verifiers, TOKENIZER)
        grading.put(warm := rollout("2"))
        slow = [rollout("1", bomb) for _ in range(2)]
        swift = [rollout("2") for _ in range(100)]
        while warm.verdict is None:
            time.sleep(0.01)
        started = time.monotonic()
        for one in [*slow, *swift]:
            grading.put(one)
        grading.finish()
    assert time.monotonic() - started < 60  # 100 of them one after the other would take 100 s
    assert {one.verdict for one in swift} == {Verdict.CORRECT}


def test_what_goes_wrong_in_the_thread_is_raised() -> None:
    with Verifiers(VerifierConfig(), [PROMPT]) as verifiers:
        grading = Grading(verifiers, TOKENIZER)
        grading.put(rollout("2", Prompt(0, (1, 2), "2", verifier="nobody")))
        with pytest.raises(ValueError, match="verifier column says 'nobody'"):
            grading.finish()


def test_a_limit_splits_what_waits() -> None:
    """``most``: what is written in between survives a kill."""
    seen: list[int] = []
    with Verifiers(VerifierConfig(), [PROMPT]) as verifiers:
        sizes = verifiers.grade

        def grade(items: list[tuple[str, Prompt]]) -> list[Verdict]:
            seen.append(len(items))
            return sizes(items)

        verifiers.grade = grade  # type: ignore[method-assign, assignment]
        grading = Grading(verifiers, TOKENIZER, most=3)
        for _ in range(10):
            grading.put(rollout("2"))
        grading.finish()
    assert sum(seen) == 10
    assert max(seen) <= 3
