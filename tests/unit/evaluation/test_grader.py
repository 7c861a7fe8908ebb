"""Finished responses are graded and written by a thread beside the engine."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from scope_megatron.config import VerifierConfig
from scope_megatron.data.tokenizer import load_tokenizer
from scope_megatron.exits import UNSAVED, StopRun
from scope_megatron.instruments.evaluation.grader import Grader
from scope_megatron.instruments.evaluation.samples import SampleStore, SampleWriter
from scope_megatron.rollout.verify import Verifiers
from scope_megatron.types import Prompt, Rollout, Verdict

TOKENIZER = load_tokenizer(Path(__file__).parents[3] / "assets" / "tiny-teacher")
PROMPTS = [Prompt(i, (1, 2), str(i)) for i in range(3)]


def rollout(problem: int, k: int, said: str, finished: bool = True) -> Rollout:
    ids = [*TOKENIZER.encode(f"\\boxed{{{said}}}"), *([TOKENIZER.eos_id] if finished else [])]
    return Rollout(PROMPTS[problem], k, ids, [], finished)


def test_every_sample_is_written_with_its_verdict(tmp_path: Path) -> None:
    with Verifiers(VerifierConfig(), PROMPTS) as verifiers:
        writer = SampleWriter(tmp_path, rank=3)
        grader = Grader(verifiers, TOKENIZER, writer)
        for k in range(40):
            grader.put("set", rollout(2, k, "2" if k % 2 else "3", finished=k != 1))
        grader.finish()
        assert grader.written == 40
    rows = [json.loads(line) for line in writer.path.read_text().splitlines()]
    assert writer.path.name.startswith("00003-")
    assert rows[1] == {
        "set": "set",
        "problem": 2,
        "sample": 1,
        "tokens": 3,
        "finished": False,
        "verdict": "correct",
        "text": "\\boxed{2}",
    }
    outcomes = SampleStore(tmp_path).outcomes()
    assert outcomes["set", 2, 0].verdict is Verdict.INCORRECT
    assert sum(outcome.correct for outcome in outcomes.values()) == 19, "one was cut off"


def test_a_sample_is_on_disk_before_the_next_is_there(tmp_path: Path) -> None:
    """Nothing waits for a batch to fill: a kill loses what is being sampled alone."""
    with Verifiers(VerifierConfig(), PROMPTS) as verifiers:
        writer = SampleWriter(tmp_path, rank=0)
        grader = Grader(verifiers, TOKENIZER, writer)
        grader.put("set", rollout(0, 0, "0"))
        deadline = time.monotonic() + 20
        while not SampleStore(tmp_path).outcomes() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert list(SampleStore(tmp_path).outcomes()) == [("set", 0, 0)]
        grader.finish()


def test_a_full_disk_ends_the_evaluation_with_what_to_do(tmp_path: Path) -> None:
    with Verifiers(VerifierConfig(), PROMPTS) as verifiers:
        writer = SampleWriter(tmp_path, rank=0)
        writer.close()
        writer._file = open("/dev/full", "wb", buffering=0)
        grader = Grader(verifiers, TOKENIZER, writer)
        grader.put("set", rollout(0, 0, "0"))
        with pytest.raises(StopRun, match="No space left on device.*repeat the command") as stop:
            grader.finish()
        assert stop.value.code == UNSAVED
        with pytest.raises(StopRun):
            grader.put("set", rollout(0, 1, "0"))
