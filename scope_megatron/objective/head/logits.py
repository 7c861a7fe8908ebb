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
    topk     reverse KL on the k best tokens of teacher, student or both (``topk.py``)
    entropy_kl   KL(p||q), and where the teacher's entropy is above the threshold also KL(q||p)

The forward costs one all-gather of a few scalars per token for the whole call (two for jsd, whose
mixture needs the normalisers first; see ``statistics.py``). The backward is closed-form and needs
no communication: every rank of the group must get the same upstream gradient, as it does when each
computes the same loss. All arithmetic is in float32 (float64 for float64 logits) on blocks of
``spec.chunk`` tokens, so the extra memory is chunk * W, not T * W.

Logits of -inf forbid a token: without probability it enters no sum. Where only the teacher
forbids it, KL(p||q) is not finite in exact arithmetic, and a huge number here.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from scope_megatron.objective.head.gradient import logits_gradient
from scope_megatron.objective.head.shard import Shard, check
from scope_megatron.objective.head.spec import Spec
from scope_megatron.objective.head.statistics import Statistics, statistics


class Scores(NamedTuple):
    """Scores of a pass, per token."""

    logprob: Tensor  # [T], differentiable where the function is
    entropy: Tensor | None  # [T] nats, without a gradient; None unless asked for


class TokenTerms(NamedTuple):
    """Log-probability, divergence and entropy of each token, from which a loss is made."""

    logprob: Tensor  # [T], differentiable
    divergence: Tensor | None  # [T], differentiable; None without a teacher
    entropy: Tensor | None  # [T]; None unless asked for, and with a teacher
    teacher_logprob: Tensor | None  # [T] of the targets; None for topk and without a teacher


def vocab_parallel_logprob(
    logits: Tensor, targets: Tensor, shard: Shard, spec: Spec | None = None
) -> Tensor:
    """Log-probability of each target under softmax(logits / temperature), differentiable.

    Args:
        logits: [T, W] this rank's shard.
        targets: [T] integers in [0, vocab_size), the same on every rank.
        shard: which columns these are.
        spec: temperature, chunk, kernel, in-place settings.

    Returns:
        [T] float32 (float64 for float64 logits), the same on every rank.

    Raises:
        ValueError: shapes that do not fit, a CPU's target outside the vocabulary, temperature <= 0.
    """
    return vocab_parallel_scores(logits, targets, shard, spec).logprob


def vocab_parallel_scores(
    logits: Tensor, targets: Tensor, shard: Shard, spec: Spec | None = None
) -> Scores:
    """As :func:`vocab_parallel_logprob`, and the entropy if the spec asks for it."""
    spec = (spec or Spec()).alone()
    check(logits, None, targets, shard, spec)
    logprob, _, entropy, _ = _Head.apply(logits, None, targets, shard, spec)
    return Scores(logprob, entropy)


def vocab_parallel_divergence(
    logits: Tensor, teacher_logits: Tensor, shard: Shard, spec: Spec
) -> Tensor:
    """Divergence of student and teacher at each token, over the full vocabulary.

    Args:
        logits, teacher_logits: [T, W] shards of the same columns. Only ``logits`` gets a gradient.
        shard: which columns these are.
        spec: ``divergence`` is one of those in the module's docstring. Teacher logits that tie
            for topk's last place are chosen arbitrarily.

    Returns:
        [T] nats. Rounding may leave a value near zero slightly negative: it is not clamped.
        A row whose upstream gradient is zero gets no gradient, even if its teacher logits are NaN.

    Raises:
        ValueError: as above; two widths W; a setting out of range.
    """
    check(logits, teacher_logits, None, shard, spec)
    return _Head.apply(logits, teacher_logits.detach(), None, shard, spec)[1]


def vocab_parallel_logprob_and_divergence(
    logits: Tensor, targets: Tensor, teacher_logits: Tensor, shard: Shard, spec: Spec
) -> tuple[Tensor, Tensor]:
    """Both of the above in one pass: the same collectives and one gradient buffer instead of two.

    Returns:
        (log-probability [T], divergence [T]), both differentiable w.r.t. ``logits``.
    """
    check(logits, teacher_logits, targets, shard, spec)
    logprob, divergence, *_ = _Head.apply(logits, teacher_logits.detach(), targets, shard, spec)
    return logprob, divergence


def vocab_parallel_terms(
    logits: Tensor, targets: Tensor, teacher_logits: Tensor | None, shard: Shard, spec: Spec
) -> TokenTerms:
    """All that one pass can tell of the tokens; without teacher logits there is no divergence."""
    spec = spec.alone() if teacher_logits is None else spec
    check(logits, teacher_logits, targets, shard, spec)
    teacher = None if teacher_logits is None else teacher_logits.detach()
    return TokenTerms(*_Head.apply(logits, teacher, targets, shard, spec))


class _Head(torch.autograd.Function):
    """The fields of TokenTerms of one shard, with the closed-form backward."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        teacher: Tensor | None,
        targets: Tensor | None,
        shard: Shard,
        spec: Spec,
    ) -> tuple[Tensor | None, ...]:
        stats = statistics(logits, teacher, targets, shard, spec)
        logprob = None if targets is None else stats.logprob(spec)
        facts = (stats.entropy(spec), None if targets is None else stats.teacher_logprob(spec))
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(fact for fact in facts if fact is not None))
        ctx.shard, ctx.spec = shard, spec
        ctx.save_for_backward(
            logits, teacher if spec.dense else None, targets, *stats.for_backward()
        )
        return logprob, stats.divergence, *facts

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_logprob: Tensor | None, grad_divergence: Tensor | None, *_: None
    ) -> tuple[Tensor | None, ...]:
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
