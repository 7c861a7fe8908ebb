"""The likeliest tokens of logits whose vocabulary is cut over ranks, with their log-probabilities.

Each rank offers its shard's k best columns with its maximum and normaliser; one all-gather brings
them together, and all ranks choose the same k of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scope_megatron.objective.head.shard import Shard
from scope_megatron.objective.head.spec import Spec
from scope_megatron.objective.head.statistics import chunks, maximum, shift


@torch.no_grad()
def best_tokens(logits: Tensor, shard: Shard, spec: Spec) -> Tensor:
    """The ``spec.best`` likeliest tokens under softmax(logits / temperature).

    Args:
        logits: [T, W] this rank's shard, with or without its columns of padding.
        shard: which columns these are.
        spec: ``best`` and ``temperature``; k is ``best``, or the vocabulary where that is smaller.

    Returns:
        [T, 2k] float32 (float64 for float64 logits), the same on every rank: the tokens' numbers,
        likeliest first, then their log-probabilities. Numbers are exact below 2^24.
    """
    k = spec.best_columns(shard.vocab_size) // 2
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    # [T, 2 + 2k]: maximum, normaliser, k logits, their tokens; a short shard offers -inf
    local = torch.zeros(len(logits), 2 + 2 * k, dtype=dtype, device=logits.device)
    local[:, 0] = torch.finfo(dtype).min
    local[:, 2 : 2 + k] = -torch.inf
    have = min(k, shard.width)
    for rows in chunks(logits, shard, spec) if have else ():
        block = logits.detach()[rows, : shard.width]
        value, column = block.topk(have, -1)
        top = maximum(block, dtype)
        local[rows, 0] = top
        local[rows, 1] = shift(block, top, spec.temperature, finite=False).exp_().sum(-1)
        local[rows, 2 : 2 + have] = value.to(dtype)
        local[rows, 2 + k : 2 + k + have] = (column + shard.start).to(dtype)
    parts = shard.gather(local)  # [tp, T, 2 + 2k]
    top = parts[..., 0].amax(0)
    mass = (((parts[..., 0] - top) / spec.temperature).exp() * parts[..., 1]).sum(0)
    offered = parts[..., 2:].unflatten(-1, (2, k)).permute(2, 1, 0, 3).flatten(2)  # [2, T, tp * k]
    best, place = offered[0].topk(k, -1)
    logprob = (best - top[:, None]) / spec.temperature - mass.log()[:, None]
    return torch.cat([offered[1].gather(1, place), logprob], 1)
