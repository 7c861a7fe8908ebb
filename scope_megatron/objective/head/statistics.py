"""Statistics of logits whose vocabulary is cut over ranks: reduce locally, exchange once, merge.

Each rank reduces its columns to scalars per token, relative to its own maximum ``m_r``:

    sum e^(z - m_r)     z of the target (0 if another rank holds it)     sum e^(z - m_r) * delta

and the same of the teacher. One all-gather brings them together, and they are merged relative to
the global maximum. ``delta`` is itself taken relative to the local maxima and corrected in the
merge, so no large numbers are ever subtracted: the statistics are as exact at logits of 1e4 as
at 1. Used by ``logits.py``, whose docstring has the formulas, ``hidden.py`` and ``gradient.py``. On
CUDA the local part may be a Triton kernel's: see ``kernels.py``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from scope_megatron.objective.head import kernels, topk
from scope_megatron.objective.head.shard import Shard
from scope_megatron.objective.head.spec import Spec

_CHUNK = 1024  # tokens
_CPU_BLOCK = 2**18  # logits; measured 1.1 to 3.9 times as fast as blocks of 2**25
# columns of the exchanged statistics; topk sends others after the first 3 (see topk.py)
_TOP, _NORM, _TARGET, _MEAN, _TEACHER_TOP, _TEACHER_NORM, _TEACHER_TARGET = range(7)
_FORWARD, _TEACHER_MEAN = 7, 8  # entropy_kl alone
# the fields of Statistics that a backward needs
_SAVED = (
    *("top", "norm", "target", "mean", "shard_top"),
    *("teacher_top", "teacher_norm", "picks", "slopes", "tail", "high"),
)


@dataclass
class Statistics:
    """Scalars per token over the whole vocabulary, [T] each; None where they have no use."""

    top: Tensor  # max of z
    norm: Tensor  # sum of exp((z - top) / temperature)
    target: Tensor  # z of the target
    mean: Tensor | None = None  # what _merge_mean says; jsd: KL(p||m)
    teacher_top: Tensor | None = None
    teacher_norm: Tensor | None = None
    teacher_target: Tensor | None = None
    picks: Tensor | None = None  # topk: [T, m] columns of this shard
    slopes: Tensor | None = None  # topk: [T, m] d divergence / d(z / temperature), 0 if not ours
    tail: Tensor | None = None  # topk with a tail: the slope of every column over its p
    high: Tensor | None = None  # entropy_kl: 1 where the teacher's entropy is above the threshold
    forward: Tensor | None = None  # entropy_kl: as mean, under the teacher's distribution
    shard_top: Tensor | None = None  # where the logits became exp((z - shard_top) / temperature)
    divergence: Tensor | None = None

    def logprob(self, spec: Spec) -> Tensor:
        return (self.target - self.top) / spec.temperature - self.norm.log()

    def entropy(self, spec: Spec) -> Tensor | None:
        """Of the student's distribution, nats; None where it was not asked for."""
        if not spec.with_entropy or self.mean is None:
            return None
        return self.norm.log() - self.mean

    def teacher_logprob(self, spec: Spec) -> Tensor | None:
        """Of the targets, at the teacher's temperature; None where its whole row is not read."""
        if self.teacher_top is None or self.teacher_norm is None or self.teacher_target is None:
            return None
        height = self.teacher_target - self.teacher_top
        return height / spec.teacher_temperature - self.teacher_norm.log()

    def for_backward(self) -> tuple[Tensor | None, ...]:
        """The fields that the backward reads; :meth:`from_saved` takes them back."""
        return tuple(getattr(self, name) for name in _SAVED)

    @classmethod
    def from_saved(cls, saved: Sequence[Tensor | None]) -> Statistics:
        return cls(**dict(zip(_SAVED, saved, strict=True)))

    def rows(self, rows: slice) -> Statistics:
        """Of these tokens alone, as views."""
        return Statistics.from_saved(
            [None if value is None else value[rows] for value in self.for_backward()]
        )


def chunks(logits: Tensor, shard: Shard, spec: Spec) -> Iterator[slice]:
    """Blocks of at most ``chunk`` tokens; on a CPU smaller ones, whose buffers stay in cache."""
    total, chunk = logits.shape[0], spec.chunk or _CHUNK
    if logits.device.type == "cpu":
        chunk = min(chunk, max(1, _CPU_BLOCK // max(1, shard.width)))
    for start in range(0, total, chunk):
        yield slice(start, min(start + chunk, total))


def shift(
    block: Tensor,
    top: Tensor,
    temperature: float,
    *,
    finite: bool = True,
    out: Tensor | None = None,
) -> Tensor:
    """(block - top) / temperature in ``out``, or a new tensor of top's dtype (bf16 is not rounded).

    ``finite`` makes -inf a number without mass, safe in differences and products.
    """
    shifted = torch.sub(block, top[:, None], out=out)
    if temperature != 1.0:
        shifted.div_(temperature)
    return shifted.clamp_min_(-math.sqrt(torch.finfo(shifted.dtype).max)) if finite else shifted


def maximum(block: Tensor, dtype: torch.dtype) -> Tensor:
    """[rows] largest entry, finite even where all are -inf."""
    return block.amax(-1).to(dtype).clamp_min_(torch.finfo(dtype).min)


def log_mixture(log_p: Tensor, log_q: Tensor, beta: float) -> Tensor:
    """log(beta q + (1 - beta) p)."""
    return torch.logaddexp(log_q + math.log(beta), log_p + math.log1p(-beta))


def statistics(
    logits: Tensor, teacher: Tensor | None, targets: Tensor | None, shard: Shard, spec: Spec
) -> Statistics:
    """Everything the forward and the backward need of [T, W] logits, in one exchange (jsd: two)."""
    local, picks = local_statistics(logits, teacher, targets, shard, spec)
    parts, overwritten = shard.gather(local), overwrites(logits, shard, spec)
    stats = merge_statistics(parts, picks, shard, spec, overwritten=overwritten)
    if spec.divergence == "jsd":
        assert teacher is not None
        add_mixture(stats, shard.gather(local_mixture(stats, logits, teacher, shard, spec)), spec)
    return stats


def overwrites(logits: Tensor, shard: Shard, spec: Spec) -> bool:
    """Whether the logits' memory takes the exponentials that the backward needs again."""
    rounded = logits.dtype not in (torch.float32, torch.float64)
    if not spec.inplace_forward or rounded or shard.width == 0:
        return False
    return not kernels.chosen(logits, None, spec)


def local_statistics(
    logits: Tensor, teacher: Tensor | None, targets: Tensor | None, shard: Shard, spec: Spec
) -> tuple[Tensor, Tensor | None]:
    """([T, columns] to exchange, topk: columns of this shard that it offers)."""
    local = _reduce(logits, teacher, targets, shard, spec)
    if spec.divergence != "topk":
        return local, None
    assert teacher is not None
    blocks = partial(chunks, logits, shard, spec)
    offered, picks = topk.offer_best(logits, teacher, shard, spec, local.dtype, blocks)
    whole = [_teacher_mass(teacher, local, shard, spec)] if spec.topk_tail else []
    return torch.cat([local, *whole, offered], 1), picks


def _teacher_mass(teacher: Tensor, like: Tensor, shard: Shard, spec: Spec) -> Tensor:
    """[T, 2] the teacher's maximum and normaliser on this shard."""
    out = torch.zeros_like(like[:, :2])
    if shard.width == 0:
        out[:, 0] = torch.finfo(out.dtype).min
        return out
    for rows in chunks(teacher, shard, spec):
        block = teacher[rows, : shard.width]
        top = maximum(block, out.dtype)
        mass = shift(block, top, spec.teacher_temperature).exp_().sum(-1)
        out[rows, 0], out[rows, 1] = top, mass
    return out


def merge_statistics(
    parts: Tensor,
    picks: Tensor | None,
    shard: Shard,
    spec: Spec,
    *,
    overwritten: bool = False,
) -> Statistics:
    """[tp, T, columns] of every rank's :func:`local_statistics` -> the whole vocabulary's.

    ``overwritten``: this rank's logits are, see :func:`overwrites`.

    jsd's divergence is not among them: see :func:`local_mixture`.
    """
    if spec.divergence == "topk":
        assert picks is not None
        return _merge_topk(parts, picks, shard, spec)
    stats = _merge(parts, spec)
    if overwritten:
        stats.shard_top = parts[shard.rank, :, _TOP]
    if spec.divergence in ("reverse_kl", "forward_kl", "entropy_kl"):
        assert stats.teacher_norm is not None and stats.mean is not None
        gap = stats.teacher_norm.log() - stats.norm.log()
        stats.divergence = stats.mean + (-gap if spec.divergence == "forward_kl" else gap)
        if stats.forward is not None and stats.high is not None:
            stats.divergence = stats.divergence + stats.high * (stats.forward - gap)
    return stats


def _merge_topk(parts: Tensor, picks: Tensor, shard: Shard, spec: Spec) -> Statistics:
    stats, whole, first = _merge(parts[..., :3], spec), None, 3
    if spec.topk_tail:
        top, _, weight = _rescale(parts[..., 3], spec.teacher_temperature)
        whole = topk.Whole(stats.top, stats.norm, top, (weight * parts[..., 4]).sum(0))
        first = 5
    chosen = topk.choose_best(parts[..., first:], picks, whole, shard, spec)
    stats.divergence, stats.tail = chosen.divergence, chosen.tail
    stats.picks, stats.slopes = chosen.picks, chosen.slopes
    return stats


def _reduce(
    logits: Tensor, teacher: Tensor | None, targets: Tensor | None, shard: Shard, spec: Spec
) -> Tensor:
    """This rank's statistics: [T, 3], or 4 columns with an entropy, 7 with a dense divergence, 9
    with entropy_kl."""
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    columns = 4 if spec.with_entropy else 3
    if spec.dense:
        columns = 9 if spec.divergence == "entropy_kl" else 7
    out = torch.zeros(logits.shape[0], columns, dtype=dtype, device=logits.device)
    if shard.width == 0:  # all padding: below every maximum, and no mass
        floor = torch.finfo(dtype).min
        out[:, _TOP] = floor
        out[:, _TEACHER_TOP:_TEACHER_NORM] = floor
        return out
    if kernels.chosen(logits, teacher, spec):
        kernels.reduce(logits, teacher, targets, out, shard, spec)
        return out
    if targets is not None:
        column, owned = shard.locate(targets)
        out[:, _TARGET] = torch.where(owned, logits.gather(1, column[:, None])[:, 0].to(dtype), 0.0)
        if spec.dense and teacher is not None:
            value = teacher.gather(1, column[:, None])[:, 0].to(dtype)
            out[:, _TEACHER_TARGET] = torch.where(owned, value, 0.0)
    elif spec.divergence == "topk" and not spec.topk_tail:
        return out  # the full normaliser has no use
    overwrite = overwrites(logits, shard, spec)
    for rows in chunks(logits, shard, spec):
        block = logits.detach()[rows, : shard.width]
        top = maximum(block, dtype)
        finite = spec.dense or spec.with_entropy
        x = shift(block, top, spec.temperature, finite=finite, out=block if overwrite else None)
        mass = x.exp() if spec.dense or spec.with_entropy else x.exp_()
        out[rows, _TOP], out[rows, _NORM] = top, mass.sum(-1)
        if spec.with_entropy:
            out[rows, _MEAN] = x.mul_(mass).sum(-1)
            if overwrite:
                x.copy_(mass)
        if spec.dense:
            assert teacher is not None
            _reduce_teacher(out[rows], teacher[rows, : shard.width], x, mass, spec)
    return out


def _reduce_teacher(out: Tensor, block: Tensor, x: Tensor, mass: Tensor, spec: Spec) -> None:
    """Fill the teacher's columns of ``out`` and the mean; overwrites ``x`` and ``mass``."""
    top = maximum(block, out.dtype)
    y = shift(block, top, spec.teacher_temperature)
    out[:, _TEACHER_TOP] = top
    if spec.divergence == "reverse_kl":
        out[:, _MEAN] = mass.mul_(x.sub_(y)).sum(-1)
        out[:, _TEACHER_NORM] = y.exp_().sum(-1)
        return
    if spec.divergence == "entropy_kl":
        gap = x.sub_(y)
        out[:, _MEAN] = mass.mul_(gap).sum(-1)
        mass = torch.exp(y, out=mass)
        out[:, _TEACHER_NORM] = mass.sum(-1)
        out[:, _TEACHER_MEAN] = y.mul_(mass).sum(-1)
        out[:, _FORWARD] = -gap.mul_(mass).sum(-1)
        return
    mass = torch.exp(y, out=mass)
    out[:, _TEACHER_NORM] = mass.sum(-1)
    if spec.divergence == "forward_kl":
        out[:, _MEAN] = mass.mul_(y.sub_(x)).sum(-1)


def _merge(parts: Tensor, spec: Spec) -> Statistics:
    """[tp, T, columns] of all ranks -> the whole vocabulary's."""
    top, step, weight = _rescale(parts[..., _TOP], spec.temperature)
    mass = weight * parts[..., _NORM]
    stats = Statistics(top=top, norm=mass.sum(0), target=parts[..., _TARGET].sum(0))
    if spec.with_entropy:
        stats.mean = _merge_mean(weight, parts[..., _MEAN], mass, step)
    if spec.dense:
        temperature = spec.teacher_temperature
        stats.teacher_top, there, weight_t = _rescale(parts[..., _TEACHER_TOP], temperature)
        mass_t = weight_t * parts[..., _TEACHER_NORM]
        stats.teacher_norm = mass_t.sum(0)
        stats.teacher_target = parts[..., _TEACHER_TARGET].sum(0)
        if spec.divergence in ("reverse_kl", "entropy_kl"):
            stats.mean = _merge_mean(weight, parts[..., _MEAN], mass, step - there)
        elif spec.divergence == "forward_kl":
            stats.mean = _merge_mean(weight_t, parts[..., _MEAN], mass_t, there - step)
        if spec.divergence == "entropy_kl":
            stats.forward = _merge_mean(weight_t, parts[..., _FORWARD], mass_t, there - step)
            inner = _merge_mean(weight_t, parts[..., _TEACHER_MEAN], mass_t, there)
            high = stats.teacher_norm.log() - inner > spec.entropy_threshold
            stats.high = high.to(inner.dtype)
    return stats


def _rescale(tops: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """(global maximum [T]; from it to each rank's, [tp, T], in exponents; exp of that)."""
    top = tops.amax(0)
    # finite, so that it can meet a weight of zero
    step = ((tops - top) / temperature).clamp_min(torch.finfo(tops.dtype).min / 4)
    return top, step, step.exp()


def _merge_mean(weight: Tensor, sums: Tensor, mass: Tensor, step: Tensor) -> Tensor:
    """Mean over the vocabulary of x (entropy), x - y (reverse) or y - x (forward) [T].

    x and y are the logits over their temperatures, relative to the global maxima; the mean is under
    the distribution that ``weight`` and ``mass`` belong to.
    """
    return (weight * sums + mass * step).sum(0) / mass.sum(0)


def local_mixture(
    stats: Statistics, logits: Tensor, teacher: Tensor, shard: Shard, spec: Spec
) -> Tensor:
    """jsd: [T, 2] this rank's part of both divergences from the mixture.

    They need the normalisers of the first exchange, and an exchange of their own.
    """
    assert stats.teacher_top is not None and stats.teacher_norm is not None
    local = torch.zeros(logits.shape[0], 2, dtype=stats.norm.dtype, device=logits.device)
    if kernels.chosen(logits, teacher, spec):
        whole = (stats.top, stats.norm, stats.teacher_top, stats.teacher_norm)
        kernels.mixture(logits, teacher, whole, local, shard, spec)
        return local
    for rows in chunks(logits, shard, spec) if shard.width else ():
        x = shift(logits[rows, : shard.width], stats.top[rows], spec.temperature)
        y = shift(teacher[rows, : shard.width], stats.teacher_top[rows], spec.teacher_temperature)
        log_p = x.sub_(stats.norm[rows, None].log())
        log_q = y.sub_(stats.teacher_norm[rows, None].log())
        log_m = log_mixture(log_p, log_q, spec.beta)
        local[rows, 0] = (log_p.exp() * (log_p - log_m)).sum(-1)
        local[rows, 1] = (log_q.exp() * (log_q - log_m)).sum(-1)
    return local


def add_mixture(stats: Statistics, parts: Tensor, spec: Spec) -> None:
    """Fill in jsd from [tp, T, 2] of every rank's :func:`local_mixture`."""
    student_kl, teacher_kl = parts.sum(0).unbind(-1)
    stats.mean = student_kl
    stats.divergence = (1.0 - spec.beta) * student_kl + spec.beta * teacher_kl
