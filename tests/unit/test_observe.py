"""The mismatch of engine and trainer in numbers worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from scope_megatron.config import Config
from scope_megatron.learn import observe
from scope_megatron.logging.overlap import SHARES
from scope_megatron.types import Prompt, Rollout, Verdict
from tests.support.steps import batch_of

# probabilities of the sampled tokens of two responses
ENGINE = [[0.5, 0.25], [0.4]]
TRAINER = [[0.5, 0.5], [0.2]]


def mismatch(objective: dict[str, Any], rollout: dict[str, Any]) -> dict[str, float]:
    config = Config.model_validate(
        {
            "output_dir": "out",
            "model": {"student": "s", "teacher": "t"},
            "data": {"train": "d.jsonl", "max_prompt_tokens": 8},
            "rollout": {"prompts_per_step": 1, "group_size": 2, "max_response_tokens": 16}
            | rollout,
            "objective": objective,
            "train": {"steps": 1, "microbatch_tokens": 64},
        }
    )
    rollouts = [
        Rollout(
            Prompt(0, (1,), "1"),
            sample,
            [5] * len(probabilities),
            [math.log(p) for p in probabilities],
            finished=True,
            verdict=Verdict.CORRECT,
        )
        for sample, probabilities in enumerate(ENGINE)
    ]
    batch = batch_of(rollouts)
    batch.old_logprobs = {i: torch.tensor(row).log() for i, row in enumerate(TRAINER)}
    metrics = observe.step_metrics()
    observe.observe_batch(metrics, batch, config)
    values = metrics.reduce(None)
    return {k.removeprefix("mismatch/"): v for k, v in values.items() if k.startswith("mismatch/")}


def test_mismatch_between_engine_and_trainer() -> None:
    """Ratios trainer / engine are 1, 2 and 1/2; k3 is r - 1 - log r."""
    expected = {
        "mean_abs_logprob": 2 * math.log(2) / 3,
        "mean_abs_prob": (0.25 + 0.2) / 3,
        "k3_kl": ((2 - 1 - math.log(2)) + (0.5 - 1 + math.log(2))) / 3,
    }
    assert mismatch({}, {}) == pytest.approx(expected, rel=1e-5)
    for clip, share in ((1.5, 1 / 3), (2.5, 0.0), (0.75, 2 / 3)):
        values = mismatch({"tis_clip": clip}, {})
        assert values == pytest.approx(expected | {"tis_clipped": share}, rel=1e-5)


def test_no_mismatch_is_claimed_where_the_two_do_not_compare() -> None:
    assert mismatch({}, {"top_p": 0.9}) == {}  # the engine's are renormalised
    assert mismatch({}, {"top_k": 5}) == {}
    assert mismatch({"old_logprobs": "rollout"}, {}) == {}  # the trainer's were not computed


def group_shares(verdicts: list[list[Verdict]]) -> dict[str, float]:
    rollouts = [
        Rollout(Prompt(group, (1,), "1"), sample, [5], [-1.0], finished=True, verdict=verdict)
        for group, judged in enumerate(verdicts)
        for sample, verdict in enumerate(judged)
    ]
    metrics = observe.step_metrics()
    observe._groups(metrics, batch_of(rollouts))
    return {k: v for k, v in metrics.reduce(None).items() if k.startswith("group/")}


def test_shares_are_of_groups_that_compare_something() -> None:
    """A single response, alone or the only one judged, is of one path whatever it is."""
    right, wrong, crash = Verdict.CORRECT, Verdict.INCORRECT, Verdict.CRASH
    shares = group_shares([[right, wrong], [wrong, wrong], [wrong, crash], [right, crash]])
    assert shares == {"group/all_correct": 0.0, "group/all_incorrect": 0.5}
    assert group_shares([[wrong], [wrong], [right]]) == {}


def test_the_reference_has_every_metric() -> None:
    page = (Path(__file__).parents[2] / "docs/metrics.md").read_text()
    declared = [name for names in observe.step_metrics()._names.values() for name in names]
    declared += [f"overlap/{name}_hidden" for name in SHARES]
    assert [name for name in declared if f"`{name}`" not in page] == []
