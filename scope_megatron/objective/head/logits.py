"""Log-probabilities, entropies and divergences of logits whose vocabulary is cut over ranks.

Shapes: T tokens, V vocabulary, W = (padded V) / tp columns on each rank. Rank r of the group holds
the columns [r*W, (r+1)*W); columns at or above ``vocab_size`` are padding: they get no probability
and no gradient.

With z the student's logits, zt the teacher's, p and q their softmaxes over the whole vocabulary:

    logp(y) = z_y - lse(z)                              d/dz_v = 1[v = y] - p_v
    reverse  KL(p||q) = E_p[log p - log q]              d/dz_v = p_v (log p_v/q_v - KL(p||q))
    forward  KL(q||p) = E_q[log q - log p]              d/dz_v = p_v - q_v
    jsd      b KL(q||m) + (1-b) KL(p||m)                d/dz_v = (1-b) p_v (log p_v/m_v - KL(p||m))
             with m = b q + (1-b) p, b the teacher's share
    topk     reverse KL on the teacher's k best tokens, p and q renormalised on them

The forward costs one all-gather of a few scalars per token for the whole call (two for jsd, whose
mixture needs the normalisers first; see ``statistics.py``). The backward is closed-form and needs
no communication: every rank of the group must get the same upstream gradient, as it does when each
computes the same loss. All arithmetic is in float32 (float64 for float64 logits) on blocks of
``chunk`` tokens, so the extra memory is chunk * W, not T * W.

Logits of -inf forbid a token: without probability it enters no sum. Where only the teacher
forbids it, KL(p||q) is not finite in exact arithmetic, and a huge number here.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from scope_megatron.objective.head.gradient import logits_gradient
from scope_megatron.objective.head.shard import Kernel, Shard, Spec, check
from scope_megatron.objective.head.statistics import Statistics, statistics

Divergence = Literal["reverse_kl", "forward_kl", "jsd", "topk"]


class Scores(NamedTuple):
    """What a score pass learns of each token."""

    logprob: Tensor  # [T]
    entropy: Tensor | None  # [T], nats


def vocab_parallel_logprob(
    logits: Tensor,
    targets: Tensor,
    group: dist.ProcessGroup | None = None,
    *,
    temperature: float = 1.0,
    vocab_size: int | None = None,
    chunk: int = 1024,
    kernel: Kernel = "auto",
    inplace_backward: bool = False,
    inplace_forward: bool = False,
) -> Tensor:
    """Log-probability of each target under softmax(logits / temperature), differentiable.

    Args:
        logits: [T, W] this rank's shard.
        targets: [T] integers in [0, vocab_size), the same on every rank.
        group: the tensor-parallel group, or None for a single process.
        temperature: divides the logits, > 0.
        vocab_size: columns that are tokens; default W * tp.
        chunk: most tokens that the torch path works on at once.
        kernel: auto, torch or triton; see ``kernels.py``.
        inplace_backward: write the gradient over the logits, which saves T * W; any other use of
            the logits in the same graph that needs their values then raises.
        inplace_forward: the forward may overwrite the logits already, which saves the backward an
            exponential for each; nobody may read them afterwards. Implies ``inplace_backward``.

    Returns:
        [T] float32 (float64 for float64 logits), the same on every rank.

    Raises:
        ValueError: shapes that do not fit, a target outside the vocabulary, temperature <= 0.
    """
    spec = Spec(
        temperature=temperature,
        chunk=chunk,
        inplace_backward=inplace_backward or inplace_forward,
        kernel=kernel,
        inplace_forward=inplace_forward,
    )
    shard = Shard.of(logits, vocab_size, group)
    check(logits, None, targets, shard, spec)
    return _Head.apply(logits, None, targets, shard, spec)[0]


@torch.no_grad()
def vocab_parallel_scores(
    logits: Tensor,
    targets: Tensor,
    group: dist.ProcessGroup | None = None,
    *,
    temperature: float = 1.0,
    vocab_size: int | None = None,
    chunk: int = 1024,
    kernel: Kernel = "auto",
    with_entropy: bool = False,
) -> Scores:
    """As :func:`vocab_parallel_logprob` without a gradient, and the entropy if asked for."""
    spec = Spec(temperature=temperature, chunk=chunk, entropy=with_entropy, kernel=kernel)
    shard = Shard.of(logits, vocab_size, group)
    check(logits, None, targets, shard, spec)
    stats = statistics(logits, None, targets, shard, spec)
    entropy = None
    if with_entropy:
        assert stats.mean is not None
        entropy = stats.norm.log() - stats.mean
    return Scores(stats.logprob(spec), entropy)


def vocab_parallel_divergence(
    logits: Tensor,
    teacher_logits: Tensor,
    group: dist.ProcessGroup | None = None,
    *,
    kind: Divergence = "reverse_kl",
    temperature: float = 1.0,
    teacher_temperature: float = 1.0,
    vocab_size: int | None = None,
    beta: float = 0.5,
    topk: int = 64,
    chunk: int = 1024,
    kernel: Kernel = "auto",
    inplace_backward: bool = False,
) -> Tensor:
    """Divergence of student and teacher at each token, over the full vocabulary.

    Args:
        logits, teacher_logits: [T, W] shards of the same columns. Only ``logits`` gets a gradient.
        kind: one of the four in the module's docstring.
        teacher_temperature: divides the teacher's logits, > 0.
        beta: the teacher's share of jsd's mixture, strictly between 0 and 1.
        topk: tokens of ``topk``, at most vocab_size. Teacher logits that tie for the last place
            are chosen arbitrarily.
        others: as in :func:`vocab_parallel_logprob`.

    Returns:
        [T] nats. Rounding may leave a value near zero slightly negative: it is not clamped.
        A row whose upstream gradient is zero gets no gradient, even if its teacher logits are NaN.

    Raises:
        ValueError: as above; two widths W; a setting out of range.
    """
    spec = Spec(
        temperature, teacher_temperature, kind, beta, topk, chunk, False, inplace_backward, kernel
    )
    shard = Shard.of(logits, vocab_size, group)
    check(logits, teacher_logits, None, shard, spec)
    return _Head.apply(logits, teacher_logits.detach(), None, shard, spec)[1]


def vocab_parallel_logprob_and_divergence(
    logits: Tensor,
    targets: Tensor,
    teacher_logits: Tensor,
    group: dist.ProcessGroup | None = None,
    *,
    kind: Divergence = "reverse_kl",
    temperature: float = 1.0,
    teacher_temperature: float = 1.0,
    vocab_size: int | None = None,
    beta: float = 0.5,
    topk: int = 64,
    chunk: int = 1024,
    kernel: Kernel = "auto",
    inplace_backward: bool = False,
) -> tuple[Tensor, Tensor]:
    """Both of the above in one pass: the same collectives and one gradient buffer instead of two.

    Returns:
        (log-probability [T], divergence [T]), both differentiable w.r.t. ``logits``.
    """
    spec = Spec(
        temperature, teacher_temperature, kind, beta, topk, chunk, False, inplace_backward, kernel
    )
    shard = Shard.of(logits, vocab_size, group)
    check(logits, teacher_logits, targets, shard, spec)
    return _Head.apply(logits, teacher_logits.detach(), targets, shard, spec)


class _Head(torch.autograd.Function):
    """(log-probability or None, divergence or None) of one shard, with the closed-form backward."""

    @staticmethod
    def forward(
        ctx,
        logits: Tensor,
        teacher: Tensor | None,
        targets: Tensor | None,
        shard: Shard,
        spec: Spec,
    ) -> tuple[Tensor | None, Tensor | None]:
        stats = statistics(logits, teacher, targets, shard, spec)
        logprob = None if targets is None else stats.logprob(spec)
        ctx.set_materialize_grads(False)
        ctx.shard, ctx.spec = shard, spec
        ctx.save_for_backward(
            logits, teacher if spec.dense else None, targets, *stats.for_backward()
        )
        return logprob, stats.divergence

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_logprob: Tensor | None, grad_divergence: Tensor | None):
        logits, teacher, targets, *saved = ctx.saved_tensors
        grad = None
        if grad_logprob is not None or grad_divergence is not None:
            grad = logits_gradient(
                logits,
                teacher,
                targets,
                Statistics.from_saved(saved),
                (grad_logprob, grad_divergence),
                ctx.shard,
                ctx.spec,
            )
        return (grad, *(None,) * 4)
