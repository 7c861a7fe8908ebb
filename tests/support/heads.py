"""The loss head's functions by keywords: Shard and Spec are built from them.

Tests vary one setting at a time; ``kind`` is Spec's divergence.
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor

from scope_megatron import objective
from scope_megatron.objective import FusedLoss, Scores, Shard, Spec


def _split(options: dict[str, Any], columns: int, group: Any) -> tuple[Shard, Spec]:
    vocab_size = options.pop("vocab_size", None)
    if "kind" in options:
        options["divergence"] = options.pop("kind")
    if "with_entropy" in options:
        options["entropy"] = options.pop("with_entropy")
    return Shard.of(columns, vocab_size, group), Spec(**options)


def _columns(matrix: Tensor, dim: int) -> int:
    """What a wrong shape has in its place is for the functions themselves to refuse."""
    return matrix.shape[dim] if matrix.dim() == 2 else matrix.shape[-1]


def vocab_parallel_logprob(
    logits: Tensor, targets: Tensor, group: dist.ProcessGroup | None = None, **options: Any
) -> Tensor:
    shard, spec = _split(options, _columns(logits, 1), group)
    return objective.vocab_parallel_logprob(logits, targets, shard, spec)


def vocab_parallel_scores(
    logits: Tensor, targets: Tensor, group: dist.ProcessGroup | None = None, **options: Any
) -> Scores:
    shard, spec = _split(options, _columns(logits, 1), group)
    return objective.vocab_parallel_scores(logits, targets, shard, spec)


def vocab_parallel_divergence(
    logits: Tensor, teacher_logits: Tensor, group: dist.ProcessGroup | None = None, **options: Any
) -> Tensor:
    options = {"kind": "reverse_kl"} | options
    shard, spec = _split(options, _columns(logits, 1), group)
    return objective.vocab_parallel_divergence(logits, teacher_logits, shard, spec)


def vocab_parallel_logprob_and_divergence(
    logits: Tensor,
    targets: Tensor,
    teacher_logits: Tensor,
    group: dist.ProcessGroup | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    options = {"kind": "reverse_kl"} | options
    shard, spec = _split(options, _columns(logits, 1), group)
    return objective.vocab_parallel_logprob_and_divergence(
        logits, targets, teacher_logits, shard, spec
    )


def fused_logprob(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    group: dist.ProcessGroup | None = None,
    **options: Any,
) -> Tensor:
    shard, spec = _split(options, _columns(weight, 0), group)
    return objective.fused_logprob(hidden, weight, targets, shard, spec)


def fused_logprob_and_divergence(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    teacher: tuple[Tensor, Tensor],
    group: dist.ProcessGroup | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    options = {"kind": "reverse_kl"} | options
    shard, spec = _split(options, _columns(weight, 0), group)
    return objective.fused_logprob_and_divergence(hidden, weight, targets, teacher, shard, spec)


def fused_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    loss: Any,
    group: dist.ProcessGroup | None = None,
    *,
    teacher: tuple[Tensor, Tensor] | None = None,
    **options: Any,
) -> FusedLoss:
    options = {"kind": "reverse_kl"} | options
    shard, spec = _split(options, _columns(weight, 0), group)
    return objective.fused_loss(hidden, weight, targets, loss, shard, spec, teacher)
