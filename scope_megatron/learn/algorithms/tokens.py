"""Multipliers of single tokens that any algorithm with a teacher's term may have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from scope_megatron.config import Config
from scope_megatron.learn.batch import Batch
from scope_megatron.objective.loss import Streams


def gaps(batch: Batch) -> dict[int, Tensor]:
    """[length] log pi_T - log pi_S of the sampled tokens of the responses held here that both have
    scored, pi_S the weights that sampled; an extrapolated teacher's target in place of pi_T."""
    theirs = batch.target_logprobs or batch.teacher_logprobs
    return {
        index: theirs[index] - batch.student_logprobs[index]
        for index in batch.members(batch.routes.routed)
        if index in theirs and index in batch.student_logprobs
    }


def with_teacher_tokens(streams: Streams, batch: Batch, config: Config) -> Streams:
    """``objective.iw_gamma`` and ``objective.prefix_tokens`` on the teacher's term."""
    objective = config.objective
    if streams.kl is None:
        return streams
    if objective.iw_gamma > 0:
        early = {index: _early(gap, objective.iw_gamma) for index, gap in gaps(batch).items()}
        streams = _times(streams, early)
    if objective.prefix_tokens is not None:
        lengths = {index: len(rollout.token_ids) for index, rollout in batch.rollouts.items()}
        places = {index: torch.arange(length) for index, length in lengths.items()}
        first = {i: (place < objective.prefix_tokens).float() for i, place in places.items()}
        streams = _times(streams, first)
    return streams


def _early(gap: Tensor, gamma: float) -> Tensor:
    """IW-OPD (arXiv 2606.22600): w_t = 1 + gamma (1 - sum_{s<t} |A_s| / sum_s |A_s|)."""
    size = gap.abs().double()
    before = size.cumsum(0) - size
    return (1.0 + gamma * (1.0 - before / size.sum().clamp_min(1e-12))).to(gap.dtype)


def _times(streams: Streams, more: Mapping[int, Tensor]) -> Streams:
    known = streams.tokens.get("kl", {})
    both = {i: value * more[i] if i in more else value for i, value in known.items()}
    return replace(streams, tokens={**streams.tokens, "kl": {**more, **both}})
