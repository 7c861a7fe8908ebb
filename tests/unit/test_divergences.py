"""Divergences on few tokens and by the teacher's entropy, against float64 on whole rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from scope_megatron.objective import Shard, Spec
from scope_megatron.objective.head import statistics as vocab
from scope_megatron.objective.head.gradient import logits_gradient
from tests.support.divergences import CASES, VOCAB, expected, options_of, sample
from tests.support.heads import (
    fused_logprob_and_divergence,
    vocab_parallel_divergence,
    vocab_parallel_logprob_and_divergence,
)
from tests.unit.test_loss import some_targets, value_and_gradient


@pytest.mark.parametrize("case", CASES)
def test_divergence_is_that_of_whole_rows(case: str) -> None:
    logits, teacher, upstream = sample(0), sample(2), sample(1)[:, 0]
    options = options_of(case)
    value, grad = value_and_gradient(
        lambda z: vocab_parallel_divergence(z, teacher, None, vocab_size=VOCAB, chunk=3, **options),
        logits,
        upstream,
    )
    want, slope = value_and_gradient(lambda z: expected(z, teacher, **options), logits, upstream)
    torch.testing.assert_close(value, want, rtol=0, atol=1e-11)
    torch.testing.assert_close(grad, slope, rtol=0, atol=1e-11)
    assert float(want.abs().max()) > 0.1 and not grad[:, VOCAB:].any()


@pytest.mark.parametrize("case", CASES)
def test_two_shards_are_as_one(case: str) -> None:
    """Statistics of two parts of the vocabulary, merged: the value, and each part's gradient."""
    logits, teacher, options = sample(0), sample(2), options_of(case)
    spec = Spec(divergence=options.pop("kind"), **options)
    whole = vocab.statistics(logits[:, :VOCAB], teacher[:, :VOCAB], None, one(VOCAB), spec)
    half = VOCAB // 2 + 1
    shards = [Shard(None, 0, 0, half, half, VOCAB), Shard(None, 1, half, half, VOCAB - half, VOCAB)]
    padded = [
        torch.nn.functional.pad(x[:, :VOCAB], (0, 2 * half - VOCAB)) for x in (logits, teacher)
    ]
    told = [
        vocab.local_statistics(*(x[:, s.start : s.start + half] for x in padded), None, s, spec)
        for s in shards
    ]
    parts = torch.stack([local for local, _ in told])
    upstream = sample(1)[:, 0]
    _, slope = value_and_gradient(
        lambda z: expected(z, teacher, **options_of(case)), logits, upstream
    )
    for shard, (_, picks) in zip(shards, told, strict=True):
        merged = vocab.merge_statistics(parts, picks, shard, spec)
        torch.testing.assert_close(merged.divergence, whole.divergence, rtol=0, atol=1e-12)
        columns = slice(shard.start, shard.start + half)
        mine = [x[:, columns] for x in padded]
        grad = logits_gradient(*mine, None, merged, (None, upstream), shard, spec)
        wanted = slope[:, shard.start : shard.start + shard.width]
        torch.testing.assert_close(grad[:, : shard.width], wanted, rtol=0, atol=1e-11)


def one(columns: int) -> Shard:
    return Shard.of(columns, None, None)


@pytest.mark.parametrize("case", CASES)
def test_gradcheck_with_the_log_probability(case: str) -> None:
    options: dict[str, Any] = options_of(case) | {"vocab_size": VOCAB, "chunk": 4}
    assert torch.autograd.gradcheck(
        lambda z: vocab_parallel_logprob_and_divergence(
            z, some_targets(), sample(2), None, **options
        ),
        (sample(0).requires_grad_(),),
    )


@pytest.mark.parametrize("case", CASES)
def test_fused_with_the_projection(case: str) -> None:
    generator = torch.Generator().manual_seed(5)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    hidden, weight, teacher = random(7, 6), random(VOCAB, 6), (random(7, 5), random(VOCAB, 5))
    options, upstream = options_of(case), random(7)
    value, grad = value_and_gradient(
        lambda h: fused_logprob_and_divergence(
            h, weight, some_targets(), teacher, None, chunk=3, **options
        )[1],
        hidden,
        upstream,
    )
    want, slope = value_and_gradient(
        lambda h: expected(h @ weight.t(), teacher[0] @ teacher[1].t(), **options),
        hidden,
        upstream,
    )
    torch.testing.assert_close(value, want, rtol=0, atol=1e-11)
    torch.testing.assert_close(grad, slope, rtol=0, atol=1e-11)


def test_an_empty_intersection_moves_nothing() -> None:
    logits, teacher = torch.zeros(1, 8, dtype=torch.float64), torch.zeros(1, 8, dtype=torch.float64)
    logits[0, 0], teacher[0, 7] = 5.0, 5.0
    options = {"kind": "topk", "topk": 1, "topk_of": "intersection"}
    for tail in (False, True):
        value, grad = value_and_gradient(
            lambda z, tail=tail: vocab_parallel_divergence(
                z, teacher, None, topk_tail=tail, **options
            ),
            logits,
            torch.ones(1, dtype=torch.float64),
        )
        assert float(value) == 0.0 and not grad.any()


def test_rows_without_a_weight_may_hold_anything() -> None:
    for case in CASES:
        teacher = sample(2)
        teacher[2] = torch.nan
        upstream = sample(1)[:, 0]
        upstream[2] = 0.0
        options = options_of(case)
        _, grad = value_and_gradient(
            lambda z, o=options, t=teacher: vocab_parallel_divergence(
                z, t, None, vocab_size=VOCAB, **o
            ),
            sample(0),
            upstream,
        )
        assert grad.isfinite().all(), case
        assert not grad[2].any(), case
