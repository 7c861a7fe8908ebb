"""The closed-form gradient with respect to one shard of the logits.

Formulas in ``logits.py``. No communication: the statistics are of the whole vocabulary already.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scope_megatron.objective.head import kernels
from scope_megatron.objective.head.shard import Shard
from scope_megatron.objective.head.spec import Spec
from scope_megatron.objective.head.statistics import Statistics, chunks, log_mixture, shift

Upstream = tuple[Tensor | None, Tensor | None]  # of log-probability and divergence, [T] each


def logits_gradient(
    logits: Tensor,
    teacher: Tensor | None,
    targets: Tensor | None,
    stats: Statistics,
    upstream: Upstream,
    shard: Shard,
    spec: Spec,
) -> Tensor:
    """[T, W] gradient of the logits, over them with ``spec.overwrites``.

    ``teacher`` may be missing where no dense divergence has an upstream gradient.
    """
    grad_logprob, grad_divergence = upstream
    # detach() shares the version counter: whoever else saved the logits gets an error, not
    # a wrong value
    grad = logits.detach() if spec.overwrites else torch.empty_like(logits)
    if kernels.chosen(logits, teacher, spec):
        needed = (stats.top, stats.norm, stats.mean, stats.teacher_top, stats.teacher_norm)
        kernels.gradient(logits, teacher, targets, needed, upstream, grad, shard, spec)
        return grad
    column, owned = (None, None) if targets is None else shard.locate(targets)
    direct = grad.dtype == stats.norm.dtype  # else rounded once, at the end
    for rows in chunks(logits, shard, spec):
        gl = None if grad_logprob is None else grad_logprob[rows, None] / spec.temperature
        gd = None if grad_divergence is None else grad_divergence[rows, None] / spec.temperature
        out = grad[rows, : shard.width]
        soft = gl
        if gd is not None and stats.tail is not None:  # topk: every column moves with the tail
            moved = torch.where(gd == 0, 0.0, stats.tail[rows, None] * gd)
            soft = -moved if gl is None else gl - moved
        dz = _softmax_slope(
            logits, teacher, stats, (soft, gd), rows, shard, spec, out if direct else None
        )
        if gl is not None and shard.width:
            assert column is not None and owned is not None
            hit = torch.where(owned[rows, None], gl, 0.0)
            dz.scatter_add_(1, column[rows, None], hit)
        if gd is not None and spec.divergence == "topk" and shard.width:
            assert stats.slopes is not None and stats.picks is not None
            slopes = torch.where(gd == 0, 0.0, stats.slopes[rows] * gd)
            dz.scatter_add_(1, stats.picks[rows], slopes)
        if dz is not out:
            out.copy_(dz)
    grad[:, shard.width :] = 0
    return grad


def _softmax_slope(
    logits: Tensor,
    teacher: Tensor | None,
    stats: Statistics,
    upstream: Upstream,
    rows: slice,
    shard: Shard,
    spec: Spec,
    out: Tensor | None,
) -> Tensor:
    """[rows, width] gradient, but for the terms of single columns; written to ``out`` if given.

    ``upstream`` (gl, gd) [rows, 1] are the gradients of log-probability and divergence over the
    temperature; a row whose ``gd`` is zero must not read the teacher, whose logits may be NaN
    there. ``out`` may be the logits' own memory.
    """
    gl, gd = upstream
    norm = stats.norm[rows, None]
    if gd is None or not spec.dense:
        if gl is None:
            return norm.new_zeros(norm.shape[0], shard.width) if out is None else out.zero_()
        if stats.shard_top is not None:  # the logits are exponentials already
            scale = ((stats.shard_top[rows] - stats.top[rows]) / spec.temperature).exp()
            return torch.mul(logits[rows, : shard.width], -gl / norm * scale[:, None], out=out)
        p = shift(logits[rows, : shard.width], stats.top[rows], spec.temperature, finite=False)
        return torch.mul(p.exp_(), -gl / norm, out=out)
    assert teacher is not None and stats.teacher_top is not None
    assert stats.teacher_norm is not None and stats.mean is not None
    p = shift(logits[rows, : shard.width], stats.top[rows], spec.temperature)
    x, p = p, p.exp().div_(norm)
    y = shift(teacher[rows, : shard.width], stats.teacher_top[rows], spec.teacher_temperature)
    teacher_norm = stats.teacher_norm[rows, None]
    gl = torch.zeros_like(gd) if gl is None else gl
    if spec.divergence == "forward_kl":
        q = y.exp_().div_(teacher_norm).masked_fill_(gd == 0, 0.0)
        return torch.sub(p.mul_(gd - gl), q.mul_(gd), out=out)
    if spec.divergence == "entropy_kl":
        assert stats.high is not None
        slope = x.sub_(y).sub_(stats.mean[rows, None]).masked_fill_(gd == 0, 0.0)
        high = torch.where(gd == 0, 0.0, stats.high[rows, None] * gd)
        q = y.exp_().div_(teacher_norm).masked_fill_(gd == 0, 0.0)
        slope = torch.addcmul(high - gl, slope, gd, out=slope).mul_(p)
        return torch.sub(slope, q.mul_(high), out=out)
    if spec.divergence == "reverse_kl":
        slope = x.sub_(y)
    else:
        x, y = x.sub_(norm.log()), y.sub_(teacher_norm.log())
        slope, gd = x.sub_(log_mixture(x, y, spec.beta)), gd * (1.0 - spec.beta)
    slope = slope.sub_(stats.mean[rows, None]).masked_fill_(gd == 0, 0.0)
    return torch.mul(torch.addcmul(-gl, slope, gd, out=slope), p, out=out)
