"""Reverse KL on a few tokens: the teacher's best, the student's, their union or intersection.

Each rank offers its shard's k best columns of either side, with both models' logits there; they are
exchanged with the other statistics, and all ranks choose the same k of them. p and q are
renormalised on the chosen tokens, or keep their values and get one more bucket, the tail, for all
other tokens:

    renormalised   K = sum_v p_v log(p_v/q_v)                   d/dz_v = p_v (log(p_v/q_v) - K)
    with a tail    K = the same + p_r log(p_r/q_r), r the tail  d/dz_v = p_v (log(p_b/q_b) - K)
                   for every v of the vocabulary, b its bucket: v itself, or the tail

A choice without tokens (an intersection may be empty) gives 0 without a gradient. A tail's mass is
taken as at least the type's epsilon.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from scope_megatron.objective.head.shard import Shard
from scope_megatron.objective.head.spec import Spec


@dataclass(frozen=True)
class Chosen:
    """Result of :func:`choose_best`; m is k, or 2k for a union."""

    divergence: Tensor  # [T]
    picks: Tensor  # [T, m] columns of this shard
    slopes: Tensor  # [T, m] d divergence / d(z / temperature) there, 0 if another rank's
    tail: Tensor | None  # [T] log(p_r/q_r) - K; without a tail None


@dataclass(frozen=True)
class Whole:
    """Both models' maxima and normalisers over the whole vocabulary, [T] each."""

    top: Tensor
    norm: Tensor
    teacher_top: Tensor
    teacher_norm: Tensor


def offer_best(
    logits: Tensor,
    teacher: Tensor,
    shard: Shard,
    spec: Spec,
    dtype: torch.dtype,
    blocks: Callable[[], Iterator[slice]],
) -> tuple[Tensor, Tensor]:
    """Of each side the k logits it is chosen by, the other model's, and of two sides token numbers.

    A shard with fewer than k columns offers -inf for the rest, which no rank will choose.

    Returns:
        ([T, 2k or sides * 3k] those, [T, sides * k] their columns in this shard).
    """
    sides = _sides(spec)
    total, k, have = logits.shape[0], spec.topk, min(spec.topk, shard.width)
    offers, columns = [], []
    for side in sides:
        best = torch.full((total, k), -torch.inf, dtype=dtype, device=logits.device)
        others = torch.zeros_like(best)
        picks = torch.zeros(total, k, dtype=torch.int64, device=logits.device)
        by, other = (teacher, logits) if side == "teacher" else (logits, teacher)
        for rows in blocks() if have else ():
            value, column = by.detach()[rows, : shard.width].topk(have, -1)
            best[rows, :have], picks[rows, :have] = value.to(dtype), column
            others[rows, :have] = other.detach()[rows].gather(1, column).to(dtype)
        offers += [best, others]
        offers += [(picks + shard.start).to(dtype)] if len(sides) > 1 else []
        columns.append(picks)
    return torch.cat(offers, 1), torch.cat(columns, 1)


def choose_best(
    parts: Tensor, picks: Tensor, whole: Whole | None, shard: Shard, spec: Spec
) -> Chosen:
    """The k best of every rank's :func:`offer_best` [tp, T, columns]: divergence and slopes.

    ``whole`` is needed by a tail.
    """
    sides = _sides(spec)
    found = [
        _side(part, pick, side, spec, shard)
        for side, part, pick in zip(
            sides, parts.chunk(len(sides), -1), picks.chunk(len(sides), -1), strict=True
        )
    ]
    z, zt, ours, columns, inside = _joined(found, spec)
    if whole is None:
        log_p = _renormalised(z, inside, spec.temperature)
        log_q = _renormalised(zt, inside, spec.teacher_temperature)
    else:
        log_p = _shifted(z, whole.top[:, None], spec.temperature)
        log_p = log_p - whole.norm.log()[:, None]
        log_q = _shifted(zt, whole.teacher_top[:, None], spec.teacher_temperature)
        log_q = log_q - whole.teacher_norm.log()[:, None]
    p = torch.where(inside, log_p.exp(), 0.0)
    delta = torch.where(inside, log_p - log_q, 0.0)
    divergence, tail = (p * delta).sum(-1), None
    if whole is not None:
        p_rest, q_rest = (_rest(logs, inside) for logs in (log_p, log_q))
        beyond = p_rest.log() - q_rest.log()
        divergence = divergence + p_rest * beyond
        tail = beyond - divergence
        slopes = p * (delta - beyond[:, None])
    else:
        slopes = p * (delta - divergence[:, None])
    return Chosen(divergence, columns, torch.where(ours & inside, slopes, 0.0), tail)


def _sides(spec: Spec) -> tuple[str, ...]:
    return (spec.topk_of,) if spec.topk_of in ("teacher", "student") else ("teacher", "student")


@dataclass(frozen=True)
class _Side:
    """One side's k best of the whole vocabulary, [T, k] each."""

    z: Tensor
    zt: Tensor
    token: Tensor  # read of two sides alone
    ours: Tensor
    columns: Tensor


def _side(parts: Tensor, picks: Tensor, side: str, spec: Spec, shard: Shard) -> _Side:
    # [tp, T, 2k or 3k] -> two or three of [T, tp * k], rank-major
    best, others, *token = (p.transpose(0, 1).flatten(1) for p in parts.split(spec.topk, -1))
    best, place = best.topk(spec.topk, -1)
    others = others.gather(1, place)
    z, zt = (others, best) if side == "teacher" else (best, others)
    ours = place.div(spec.topk, rounding_mode="floor") == shard.rank
    columns = picks.gather(1, place % spec.topk)
    return _Side(z, zt, token[0].gather(1, place) if token else place, ours, columns)


def _joined(found: list[_Side], spec: Spec) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(z, zt, ours, columns, inside) [T, m] of the sides' union or intersection."""
    first, last = found[0], found[-1]
    every = torch.ones_like(first.ours)
    if len(found) == 1:
        return first.z, first.zt, first.ours, first.columns, every
    both = (last.token[:, :, None] == first.token[:, None, :]).any(-1)
    if spec.topk_of == "intersection":
        return last.z, last.zt, last.ours, last.columns, both
    pairs = ((first.z, last.z), (first.zt, last.zt), (first.ours, last.ours))
    z, zt, ours = (torch.cat(pair, 1) for pair in pairs)
    columns = torch.cat([first.columns, last.columns], 1)
    return z, zt, ours, columns, torch.cat([every, ~both], 1)


def _shifted(values: Tensor, top: Tensor, temperature: float) -> Tensor:
    """(values - top) / temperature, finite where a model forbids a token."""
    return ((values - top) / temperature).clamp_min(-(torch.finfo(values.dtype).max ** 0.5))


def _renormalised(values: Tensor, inside: Tensor, temperature: float) -> Tensor:
    """log softmax [T, m] over the tokens inside; what it is at the others is not read."""
    top = values.masked_fill(~inside, -torch.inf).amax(-1, keepdim=True)
    shifted = _shifted(values, top.clamp_min(torch.finfo(values.dtype).min), temperature)
    mass = torch.where(inside, shifted.exp(), 0.0).sum(-1, keepdim=True)
    return shifted - mass.clamp_min(torch.finfo(values.dtype).tiny).log()


def _rest(logs: Tensor, inside: Tensor) -> Tensor:
    mass = torch.where(inside, logs.exp(), 0.0).sum(-1)
    return (1.0 - mass).clamp_min(torch.finfo(logs.dtype).eps)
