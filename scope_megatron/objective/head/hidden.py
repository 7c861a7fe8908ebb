"""The loss head fused with the output projection: from hidden states, without holding all logits.

Shapes: T tokens, H and H_t hidden sizes of student and teacher, W columns of each rank's shard of
both output weights (see ``logits.py``, whose formulas and conventions these functions share).
Logits are computed ``spec.chunk`` tokens at a time, so the extra memory is chunk * W of each model,
the gradient of the weight, and T x H of the hidden states' gradient.

    fused_logprob, fused_logprob_and_divergence
        one exchange for the whole call; the backward computes the logits again
    fused_loss
        one exchange per chunk; the caller's token loss is differentiated chunk by chunk, so that
        the gradient is known before the chunk's logits are dropped: nothing is computed twice

Under tensor parallelism a rank's columns give only its part of the hidden states' gradient: the
backward sums the parts with one all-reduce, unless ``reduce_hidden`` is false (where the hidden
states come from a gather whose backward is a reduce-scatter, as with sequence parallelism). The
weights' gradients are accumulated in float32 and returned in the weights' type. Only student
tensors get gradients.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from scope_megatron.objective.head.best import best_tokens
from scope_megatron.objective.head.gradient import Upstream, logits_gradient
from scope_megatron.objective.head.logits import Scores
from scope_megatron.objective.head.shard import Shard, check
from scope_megatron.objective.head.spec import Spec
from scope_megatron.objective.head.statistics import (
    Statistics,
    add_mixture,
    local_mixture,
    local_statistics,
    merge_statistics,
    statistics,
)

CHUNK = 256  # a CPU's caches
CUDA_CHUNK = 1024  # fewer launches, collectives and passes over the weight's gradient
# (log-probability [c], divergence [c] or None, their rows of T) -> scalar, to be summed over chunks
ChunkLoss = Callable[[Tensor, Tensor | None, slice], Tensor]
TeacherHead = tuple[Tensor, Tensor]  # hidden states [T, H_t], this rank's output weight [W, H_t]


class FusedLoss(NamedTuple):
    """Result of :func:`fused_loss`; only ``loss`` has a gradient."""

    loss: Tensor  # scalar
    logprob: Tensor  # [T]
    divergence: Tensor | None  # [T]
    teacher_logprob: Tensor | None  # [T] of the targets; None for topk or without a teacher
    entropy: Tensor | None  # [T] nats; None unless asked for, and with a divergence


def fused_logprob(
    hidden: Tensor, weight: Tensor, targets: Tensor, shard: Shard, spec: Spec | None = None
) -> Tensor:
    """``vocab_parallel_logprob`` of the logits ``hidden @ weight.T``.

    Args:
        hidden: [T, H], the same on every rank.
        weight: [W, H] this rank's shard of the output weight.
        targets: [T] integers in [0, vocab_size), the same on every rank.
        shard: which columns the weight's rows are.
        spec: ``chunk`` tokens' logits exist at once (None: CHUNK, on a GPU CUDA_CHUNK);
            ``reduce_hidden`` sums the hidden states' gradient over the group.

    Returns:
        [T] float32 (float64 for float64 inputs), the same on every rank.

    Raises:
        ValueError: shapes that do not fit, a CPU's target outside the vocabulary, temperature <= 0.
    """
    return fused_scores(hidden, weight, targets, shard, spec).logprob


def fused_scores(
    hidden: Tensor, weight: Tensor, targets: Tensor, shard: Shard, spec: Spec | None = None
) -> Scores:
    """As :func:`fused_logprob`, and the entropy if the spec asks for it."""
    spec = replace((spec or Spec()).alone(), inplace_backward=True)
    head = _Head.of(hidden, weight, targets, None, shard, spec)
    logprob, _, entropy = _Recomputed.apply(hidden, weight, head)
    return Scores(logprob, entropy)


def fused_best(hidden: Tensor, weight: Tensor, shard: Shard, spec: Spec) -> Tensor:
    """``best_tokens`` [T, 2k] of the logits ``hidden @ weight.T``; arguments as above."""
    targets = torch.zeros(len(hidden), dtype=torch.int64, device=hidden.device)
    head = _Head.of(hidden, weight, targets, None, shard, spec.alone())
    blocks = [*head.chunks()] or [slice(0)]
    return torch.cat([best_tokens(head.logits(hidden, weight, b), shard, spec) for b in blocks])


def fused_logprob_and_divergence(
    hidden: Tensor, weight: Tensor, targets: Tensor, teacher: TeacherHead, shard: Shard, spec: Spec
) -> tuple[Tensor, Tensor]:
    """``vocab_parallel_logprob_and_divergence`` of both models' hidden states and output weights.

    Args:
        teacher: its hidden states [T, H_t] and this rank's shard of its output weight [W, H_t].
        others: as in :func:`fused_logprob` and ``vocab_parallel_divergence``.

    Returns:
        (log-probability [T], divergence [T]), both differentiable w.r.t. ``hidden``, ``weight``.
    """
    spec = replace(spec, inplace_backward=True)
    head = _Head.of(hidden, weight, targets, teacher, shard, spec)
    logprob, divergence, *_ = _Recomputed.apply(hidden, weight, head)
    return logprob, divergence


def fused_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    loss: ChunkLoss,
    shard: Shard,
    spec: Spec,
    teacher: TeacherHead | None = None,
) -> FusedLoss:
    """The sum over chunks of a token loss, in one pass over the logits.

    Args:
        loss: gives a chunk's loss from its log-probabilities and divergences (None without a
            teacher); it must give every rank the same value, and reads no other part of the graph:
            gradients reach ``hidden`` and ``weight`` only.
        teacher: as in :func:`fused_logprob_and_divergence`, or None for no divergence.
        others: as there.

    Returns:
        See :class:`FusedLoss`. The backward may be called once.
    """
    if teacher is None:  # each block's logits are read by nobody else
        spec = replace(spec.alone(), inplace_forward=True)
    spec = replace(spec, inplace_backward=True)
    head = _Head.of(hidden, weight, targets, teacher, shard, spec)
    if not torch.is_grad_enabled():  # nor make gradients then
        hidden, weight = hidden.detach(), weight.detach()
    return FusedLoss(*_OnePass.apply(hidden, weight, head, loss))


@dataclass(frozen=True)
class _Head:
    """Everything but the two tensors that get gradients. Tensors are detached."""

    targets: Tensor
    teacher_hidden: Tensor | None
    teacher_weight: Tensor | None
    shard: Shard
    spec: Spec

    @classmethod
    def of(
        cls,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        teacher: TeacherHead | None,
        shard: Shard,
        spec: Spec,
    ) -> _Head:
        logits = _unmade_logits(hidden, weight, "student")
        teacher_logits = None if teacher is None else _unmade_logits(*teacher, "teacher")
        check(logits, teacher_logits, targets, shard, spec)
        if teacher is None:
            return cls(targets, None, None, shard, spec)
        return cls(targets, teacher[0].detach(), teacher[1].detach(), shard, spec)

    def chunks(self) -> Iterator[slice]:
        default = CUDA_CHUNK if self.targets.is_cuda else CHUNK
        total, chunk = self.targets.shape[0], self.spec.chunk or default
        for start in range(0, total, chunk):
            yield slice(start, min(start + chunk, total))

    def logits(self, hidden: Tensor, weight: Tensor, rows: slice) -> Tensor:
        """[c, width]: no padding columns."""
        return _matmul(hidden[rows], weight[: self.shard.width].t())

    def teacher_logits(self, rows: slice) -> Tensor | None:
        if self.teacher_hidden is None or self.teacher_weight is None:
            return None
        return self.logits(self.teacher_hidden, self.teacher_weight, rows)

    def statistics(self, hidden: Tensor, weight: Tensor) -> Statistics:
        """Of all tokens, with the exchanges of ``statistics.statistics``."""
        local, picks = [], []
        for rows in self.chunks():
            z = self.logits(hidden, weight, rows)
            part, pick = local_statistics(
                z, self.teacher_logits(rows), self.targets[rows], self.shard, self.spec
            )
            local.append(part)
            picks += [] if pick is None else [pick]
        if not local:  # no tokens
            z, zt = self.logits(hidden, weight, slice(0)), self.teacher_logits(slice(0))
            return statistics(z, zt, self.targets, self.shard, self.spec)
        parts = self.shard.gather(torch.cat(local))
        stats = merge_statistics(parts, torch.cat(picks) if picks else None, self.shard, self.spec)
        if self.spec.divergence == "jsd":
            mixtures = [self._mixture(stats, hidden, weight, rows) for rows in self.chunks()]
            add_mixture(stats, self.shard.gather(torch.cat(mixtures)), self.spec)
        return stats

    def _mixture(self, stats: Statistics, hidden: Tensor, weight: Tensor, rows: slice) -> Tensor:
        z, zt = self.logits(hidden, weight, rows), self.teacher_logits(rows)
        assert zt is not None
        return local_mixture(stats.rows(rows), z, zt, self.shard, self.spec)


class _Gradients:
    """Accumulates the gradients of hidden states and weight chunk by chunk; None: not wanted."""

    def __init__(self, hidden: Tensor, weight: Tensor, head: _Head, wanted: Sequence[bool]) -> None:
        self.head, self.inputs = head, (hidden, weight)
        self.hidden = torch.zeros_like(hidden) if wanted[0] else None
        self.weight = torch.zeros_like(weight, dtype=_accumulator(weight)) if wanted[1] else None

    def add(
        self, z: Tensor, zt: Tensor | None, stats: Statistics, upstream: Upstream, rows: slice
    ) -> None:
        """One chunk. ``z``, its logits, are overwritten; ``stats`` and ``upstream`` are its own."""
        head, (hidden, weight) = self.head, self.inputs
        dz = logits_gradient(z, zt, head.targets[rows], stats, upstream, head.shard, head.spec)
        dz = dz.to(hidden.dtype)
        width = head.shard.width
        if self.hidden is not None:
            torch.mm(dz, weight[:width], out=self.hidden[rows])
        if self.weight is not None:
            _add_matmul(self.weight[:width], dz.t(), hidden[rows])

    def finish(self) -> tuple[Tensor | None, Tensor | None]:
        """(of the hidden states, of the weight); the first summed over the group if it must be."""
        hidden, weight = self.hidden, self.weight
        group = self.head.shard.group
        reduces = self.head.spec.reduce_hidden and group is not None and group.size() > 1
        if hidden is not None and reduces:
            dist.all_reduce(hidden, group=group)
        return hidden, None if weight is None else weight.to(self.inputs[1].dtype)


class _Recomputed(torch.autograd.Function):
    """(log-probability, divergence or None, entropy or None) [T]; keeps no logits."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, head: _Head
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        stats = head.statistics(hidden, weight)
        entropy = stats.entropy(head.spec)
        ctx.set_materialize_grads(False)
        if entropy is not None:
            ctx.mark_non_differentiable(entropy)
        ctx.head = head
        ctx.save_for_backward(hidden, weight, *stats.for_backward())
        return stats.logprob(head.spec), stats.divergence, entropy

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_logprob: Tensor | None, grad_divergence: Tensor | None, _: None
    ) -> tuple[Tensor | None, ...]:
        upstream = (grad_logprob, grad_divergence)
        hidden, weight, *saved = ctx.saved_tensors
        head: _Head = ctx.head
        stats = Statistics.from_saved(saved)
        gradients = _Gradients(hidden, weight, head, ctx.needs_input_grad)
        needs_teacher = head.spec.dense and upstream[1] is not None
        for rows in head.chunks() if any(part is not None for part in upstream) else ():
            gl, gd = (None if part is None else part[rows] for part in upstream)
            z = head.logits(hidden, weight, rows)
            zt = head.teacher_logits(rows) if needs_teacher else None
            gradients.add(z, zt, stats.rows(rows), (gl, gd), rows)
        return (*gradients.finish(), None)


class _OnePass(torch.autograd.Function):
    """The fields of FusedLoss; the forward already makes the gradients."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, head: _Head, loss: ChunkLoss
    ) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad[:2]
        gradients = _Gradients(hidden, weight, head, wanted)
        total = torch.zeros((), dtype=_accumulator(hidden), device=hidden.device)
        rows_out: list[tuple[Tensor | None, ...]] = []
        for rows in head.chunks():
            z, zt = head.logits(hidden, weight, rows), head.teacher_logits(rows)
            stats = statistics(z, zt, head.targets[rows], head.shard, head.spec)
            logprob, divergence = stats.logprob(head.spec), stats.divergence
            value, upstream = _differentiate(loss, logprob, divergence, rows)
            total += value
            rows_out.append(
                (logprob, divergence, stats.teacher_logprob(head.spec), stats.entropy(head.spec))
            )
            if any(wanted) and any(part is not None for part in upstream):
                gradients.add(z, zt, stats, upstream, rows)
            del z, zt  # before the next chunk's are made
        nothing = total.new_zeros(0)
        taught = None if head.teacher_weight is None else nothing.clone()
        outputs = _join(rows_out) if rows_out else (nothing, taught, None, None)
        ctx.gradients = gradients
        ctx.mark_non_differentiable(*(part for part in outputs if part is not None))
        return total, *outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        gradients: _Gradients | None = ctx.gradients
        if gradients is None:
            raise RuntimeError("fused_loss gives its gradient once: call backward() once")
        ctx.gradients = None
        for part in (gradients.hidden, gradients.weight):
            if part is not None:
                part.mul_(upstream)
        return (*gradients.finish(), None, None)


def _join(chunks: list[tuple[Tensor | None, ...]]) -> tuple[Tensor | None, ...]:
    """Per-chunk columns -> whole columns; a column is there in all chunks or in none."""
    columns = zip(*chunks, strict=True)
    return tuple(None if column[0] is None else torch.cat(column) for column in columns)


def _differentiate(
    loss: ChunkLoss, logprob: Tensor, divergence: Tensor | None, rows: slice
) -> tuple[Tensor, Upstream]:
    """A chunk's loss, and its gradients w.r.t. log-probability and divergence."""
    with torch.enable_grad():
        leaves = [logprob.detach().requires_grad_()]
        leaves += [] if divergence is None else [divergence.detach().requires_grad_()]
        value = loss(leaves[0], leaves[1] if len(leaves) > 1 else None, rows)
        grads: tuple[Tensor | None, ...] = (None,) * len(leaves)
        if value.requires_grad:
            grads = torch.autograd.grad(value, leaves, allow_unused=True)
    return value.detach(), (grads[0], grads[1] if len(grads) > 1 else None)


def _unmade_logits(hidden: Tensor, weight: Tensor, whose: str) -> Tensor:
    """[T, W] without memory, to check shapes on."""
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"the {whose}'s hidden states must be [tokens, H] and its output weight [columns, H], "
            f"got {tuple(hidden.shape)} and {tuple(weight.shape)}"
        )
    return torch.empty(hidden.shape[0], weight.shape[0], dtype=hidden.dtype, device="meta")


def _accumulator(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _matmul(left: Tensor, right: Tensor) -> Tensor:
    """In float32 on CUDA, whatever the inputs: half-precision logits would cost accuracy."""
    if left.is_cuda and left.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(left, right, out_dtype=torch.float32)
    return torch.mm(left, right)


@functools.cache
def _accumulates(device: torch.device) -> bool:
    """Whether this torch adds a bfloat16 product to a float32 matrix; some releases refuse to."""
    out, half = torch.zeros(16, 16, device=device), torch.zeros(16, 16, device=device).bfloat16()
    try:
        torch.addmm(out, half, half, out_dtype=torch.float32, out=out)
    except (RuntimeError, TypeError):
        return False
    return True


def _add_matmul(out: Tensor, left: Tensor, right: Tensor) -> None:
    """out += left @ right, without a product of ``out``'s size beside it where torch can."""
    if out.dtype == left.dtype:
        out.addmm_(left, right)
    elif out.is_cuda and _accumulates(out.device):
        torch.addmm(out, left, right, out_dtype=torch.float32, out=out)
    else:
        out.add_(_matmul(left, right))
