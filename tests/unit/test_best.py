"""The likeliest tokens of logits and of hidden states, with their log-probabilities."""

from __future__ import annotations

import pytest
import torch

from scope_megatron.objective.head.best import best_tokens
from scope_megatron.objective.head.hidden import fused_best
from scope_megatron.objective.head.shard import Shard
from scope_megatron.objective.head.spec import Spec

ROWS, COLUMNS, VOCAB, HIDDEN = 13, 40, 37, 16  # three columns of padding


@pytest.mark.parametrize("best", [1, 5, VOCAB, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_they_are_softmaxes_largest(best: int, temperature: float) -> None:
    torch.manual_seed(best)
    hidden, weight = torch.randn(ROWS, HIDDEN), torch.randn(COLUMNS, HIDDEN)
    weight[VOCAB:] = 100.0 * weight[0]  # padding would win
    logits = hidden @ weight.t()
    logits[3] *= 1e4  # one token has everything
    spec = Spec(temperature=temperature, best=best, chunk=4)
    shard = Shard.of(COLUMNS, VOCAB, None)
    k = spec.best_columns(VOCAB) // 2
    expected = (logits[:, :VOCAB].double() / temperature).log_softmax(-1).topk(k)
    ids, values = best_tokens(logits, shard, spec).split(k, 1)
    assert torch.equal(ids.long(), expected.indices)
    torch.testing.assert_close(values, expected.values.float(), rtol=1e-5, atol=1e-5)
    fused = fused_best(hidden, weight, shard, spec)
    whole = best_tokens(hidden @ weight.t(), shard, spec)
    torch.testing.assert_close(fused, whole, rtol=1e-5, atol=1e-5)


def test_of_no_rows_and_of_forbidden_tokens() -> None:
    shard, spec = Shard.of(COLUMNS, VOCAB, None), Spec(best=3)
    assert best_tokens(torch.zeros(0, COLUMNS), shard, spec).shape == (0, 6)
    assert fused_best(torch.zeros(0, 4), torch.zeros(COLUMNS, 4), shard, spec).shape == (0, 6)
    logits = torch.full((1, COLUMNS), -torch.inf)
    logits[0, 7] = 2.0
    found = best_tokens(logits, shard, spec)[0]
    assert found[0] == 7 and found[3] == 0.0 and found[4] == -torch.inf
