"""Verdicts find their responses when engines of several ranks share the grading."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch.distributed as dist

from scope_megatron.engine.interface import Engine, Finished, Sampling
from scope_megatron.parallel.topology import Topology
from scope_megatron.rollout.grading import Grading
from scope_megatron.rollout.sample import EnginePlace, grade, sample
from scope_megatron.types import Prompt, Rollout, Verdict
from tests.support.harness import run_distributed_test

PROMPTS = [Prompt(i, (1,), str(i)) for i in range(5)]
SAMPLES = 3
VERDICTS = [Verdict.CORRECT, Verdict.INCORRECT]


@dataclass
class Written:
    """Stands for an engine whose responses are known beforehand; they end in another order."""

    def generate(
        self, prompts: list[Prompt], sampling: Sampling, finished: Finished
    ) -> list[Rollout]:
        made = [
            Rollout(prompt, k, [prompt.index, k], [], True)
            for prompt in prompts
            for k in range(sampling.samples)
        ]
        for number in reversed(range(len(made))):
            finished(number, made[number])
        return made


class Judge:
    """Remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def decode(self, token_ids: list[int]) -> str:
        return " ".join(map(str, token_ids))

    def grade(self, items: list[tuple[str, Prompt]]) -> list[Verdict]:
        self.asked += [text for text, _ in items]
        return [
            [Verdict.CORRECT, Verdict.INCORRECT][sum(map(int, t.split())) % 2] for t, _ in items
        ]


def sample_and_grade(rank: int, world_size: int, engine_tensor: int) -> dict[str, Any]:
    topology = cast(
        Topology,
        SimpleNamespace(
            mp_group=dist.group.WORLD,
            tp_rank=rank,
            tp_size=world_size,
            pp_rank=0,
            pp_size=1,
            cp_rank=0,
            cp_size=1,
        ),
    )
    judge = Judge()
    place = EnginePlace.of(topology, engine_tensor)
    sampling = Sampling(SAMPLES, 8, 1.0)
    grading = Grading(cast(Any, judge), cast(Any, judge))
    sampled = sample(cast(Engine, Written()), PROMPTS, sampling, topology, place, grading)
    found = grade(sampled, topology, place)
    return {
        "responses": [(r.prompt.index, r.sample, r.text, str(r.verdict)) for r in found],
        "asked": sorted(judge.asked),
    }


@pytest.mark.parametrize("engine_tensor", [1, 2])
def test_every_rank_has_every_verdict(engine_tensor: int) -> None:
    results = run_distributed_test(sample_and_grade, 2, engine_tensor)
    expected = [
        (i, k, f"{i} {k}", str(VERDICTS[(i + k) % 2]))
        for i in range(len(PROMPTS))
        for k in range(SAMPLES)
    ]
    for result in results:
        assert result["responses"] == expected
    asked = sorted(text for result in results for text in result["asked"])
    assert asked == sorted(text for _, _, text, _ in expected)  # each once, on one rank
    assert all(result["asked"] for result in results)
