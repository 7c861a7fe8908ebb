"""Vocabulary shard: the columns that a rank holds, and checks of tensors against them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from scope_megatron.objective.head.spec import DIVERGENCES, KERNELS, Spec


@dataclass(frozen=True)
class Shard:
    """This rank's columns: ``width`` real ones, the first of them token ``start``."""

    group: dist.ProcessGroup | None
    rank: int
    start: int
    columns: int  # of this rank's logits, padding included
    width: int
    vocab_size: int

    @classmethod
    def of(cls, columns: int, vocab_size: int | None, group: dist.ProcessGroup | None) -> Shard:
        """This rank's shard of ``columns``, padding included; by default all are tokens.

        ``group``: the tensor-parallel group, None for a single process. Raises ValueError when
        the shards together have fewer columns than ``vocab_size``.
        """
        rank, size = (0, 1) if group is None else (group.rank(), group.size())
        vocab_size = columns * size if vocab_size is None else vocab_size
        if not 0 < vocab_size <= columns * size:
            raise ValueError(
                f"vocab_size {vocab_size} does not fit {size} shard(s) of {columns} columns"
            )
        width = min(max(vocab_size - rank * columns, 0), columns)
        return cls(group, rank, rank * columns, columns, width, vocab_size)

    def gather(self, local: Tensor) -> Tensor:
        """[T, k] of each rank -> [tp, T, k]: the only communication of this package."""
        if self.group is None or self.group.size() == 1 or local.numel() == 0:
            return local[None]
        out = local.new_empty((self.group.size(), *local.shape))
        dist.all_gather_into_tensor(out.flatten(0, 1), local.contiguous(), group=self.group)
        return out

    def locate(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        """([T] column in this shard, clamped; [T] whether the shard really holds it)."""
        column = targets.long() - self.start
        owned = (column >= 0) & (column < self.width)
        return column.clamp(0, max(self.width - 1, 0)), owned


def check(
    logits: Tensor, teacher: Tensor | None, targets: Tensor | None, shard: Shard, spec: Spec
) -> None:
    """Raise ValueError for what the public functions say they refuse."""
    if logits.dim() != 2 or not logits.is_floating_point() or logits.shape[1] != shard.columns:
        raise ValueError(
            f"logits must be [tokens, {shard.columns}] floats, got {tuple(logits.shape)} "
            f"{logits.dtype}"
        )
    if not (spec.temperature > 0 and spec.teacher_temperature > 0):
        raise ValueError(
            "rollout.temperature and objective.teacher_temperature must be greater than 0, got "
            f"{spec.temperature} and {spec.teacher_temperature}"
        )
    if spec.chunk is not None and spec.chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {spec.chunk}")
    if spec.kernel not in KERNELS:
        raise ValueError(
            f"objective.kernel must be one of {', '.join(KERNELS)}; got {spec.kernel!r}"
        )
    if spec.divergence is not None and spec.divergence not in DIVERGENCES:
        raise ValueError(
            f"the divergence must be one of {', '.join(DIVERGENCES)}; got {spec.divergence!r}"
        )
    if spec.divergence == "jsd" and not 0 < spec.beta < 1:
        raise ValueError(f"objective.jsd_beta must lie between 0 and 1, got {spec.beta}")
    if spec.divergence == "topk" and not 0 < spec.topk <= shard.vocab_size:
        raise ValueError(
            f"objective.topk must lie between 1 and the vocabulary's {shard.vocab_size}, "
            f"got {spec.topk}"
        )
    if teacher is not None and teacher.shape != logits.shape:
        raise ValueError(
            f"student and teacher logits are {tuple(logits.shape)} and {tuple(teacher.shape)}: "
            "their shards cover the same tokens only if both vocabularies are padded to one width "
            f"(student {logits.shape[-1]}, teacher {teacher.shape[-1]} columns per rank)"
        )
    if targets is not None:
        _check_targets(logits, targets, shard)


def _check_targets(logits: Tensor, targets: Tensor, shard: Shard) -> None:
    if targets.shape != logits.shape[:1] or targets.is_floating_point():
        raise ValueError(
            f"targets must be [{logits.shape[0]}] integers, got {tuple(targets.shape)} "
            f"{targets.dtype}"
        )
    if targets.numel() == 0 or targets.device.type != "cpu":
        return  # a device would be waited for: its packs were checked when they were built
    low, high = torch.stack(targets.aminmax()).tolist()
    if low < 0 or high >= shard.vocab_size:
        raise ValueError(
            f"targets lie in [{low}, {high}], outside the vocabulary of {shard.vocab_size} tokens"
        )
