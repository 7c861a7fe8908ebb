"""Responses dealt over replicas: balanced by arithmetic, whatever the lengths."""

from __future__ import annotations

import random

import pytest
import torch

from scope_megatron.learn.deal import Arithmetic, deal, imbalance
from scope_megatron.objective.routing import Routes


def routes(correct: torch.Tensor, masked: torch.Tensor) -> Routes:
    return Routes(correct & ~masked, ~correct & ~masked, masked)


def long_tailed(prompts: int, each: int, seed: int) -> torch.Tensor:
    """Tokens of prompt (64) and response (8 to 512, log-normal, alike inside a group)."""
    rng = random.Random(seed)
    lengths = []
    for _ in range(prompts):
        hard = rng.gauss(4.0, 0.8)
        lengths += [min(512, max(8, int(rng.lognormvariate(hard, 0.4)))) for _ in range(each)]
    return 64 + torch.tensor(lengths)


@pytest.mark.parametrize("seed", range(5))
def test_replicas_get_the_same_arithmetic(seed: int) -> None:
    """Under 5% over the mean at data 4, for all responses and for those the teacher scores."""
    cost = Arithmetic.of(896).cost(long_tailed(32, 8, seed))
    generator = torch.Generator().manual_seed(seed)
    correct = torch.rand(256, generator=generator) < 0.5
    paths = routes(correct, torch.rand(256, generator=generator) < 0.05)
    holders = deal(cost, paths, 4)
    for counted in (paths.routed, paths.incorrect):
        assert imbalance(cost, holders, counted, 4) < 1.05
    by_prompt = torch.arange(256) // 8 % 4
    assert imbalance(cost, by_prompt, paths.routed, 4) > 1.05, "nothing was to be gained"


def test_every_response_has_one_holder_and_the_deal_is_the_same_everywhere() -> None:
    cost = Arithmetic.of(64).cost(torch.tensor([5, 5, 5, 5, 9, 1, 1, 1]))
    nobody = torch.zeros(8, dtype=torch.bool)
    paths = routes(torch.tensor([True, False] * 4), nobody)
    first, second = deal(cost, paths, 3), deal(cost, paths, 3)
    assert torch.equal(first, second)
    assert set(first.tolist()) == {0, 1, 2}


def test_attention_counts_for_long_sequences() -> None:
    """One of 12 h tokens costs as much as two half as long and half of another."""
    arithmetic = Arithmetic.of(100)
    short, long = arithmetic.cost(torch.tensor([600, 1200])).tolist()
    assert short == pytest.approx(900.0) and long == pytest.approx(2400.0)


def test_a_batch_of_nothing_is_balanced() -> None:
    cost = torch.zeros(0, dtype=torch.float64)
    empty = torch.zeros(0, dtype=torch.bool)
    assert imbalance(cost, torch.zeros(0, dtype=torch.int64), empty, 2) == 1.0
