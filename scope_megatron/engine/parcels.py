"""Megatron's shards into engines on other ranks: who sends which rows to whom, made once.

The counterpart of :mod:`reshard` where no rank holds both. From the same placement, an engine rank
lists the rows that it takes of every shard, in parcels: rows of one source rank, one after the
other. Each parcel is sent straight from the rank that holds them. Every engine gets its parcels
from one replica of the trainer; replicas share the engines.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from scope_megatron.convert.mapping import Mapping, Shape
from scope_megatron.engine.placement import (
    Copy,
    EngineLayout,
    PlanError,
    copies_of,
    real_rows,
    uncovered,
)
from scope_megatron.engine.reshard import Held, Write


@dataclass(frozen=True)
class TrainerShards:
    """What the trainer's ranks hold, as the engines' are told."""

    held: tuple[Held, ...]  # of every pipeline stage
    hf: dict[str, Any]
    tensor: int
    replicas: int  # data x context: ranks that hold the same shard

    def rank(self, engine: int, source: tuple[int, int]) -> int:
        """Rank of the job that sends ``engine`` the parcels of ``source`` (stage, tensor rank)."""
        stage, shard = source
        return shard + self.tensor * (engine % self.replicas + self.replicas * stage)


@dataclass(frozen=True)
class Landing:
    """Elements of a parcel -> a place in an engine parameter."""

    offset: int
    shape: Shape
    target: str
    row: int
    column: int


@dataclass(frozen=True)
class ShardRows:
    """Rows of a shard; of a matrix some of its columns."""

    name: str
    row: int
    rows: int
    column: int
    columns: int

    def of(self, own: dict[str, Tensor]) -> Tensor:
        rows = own[self.name][self.row : self.row + self.rows]
        return rows[:, self.column : self.column + self.columns] if rows.dim() == 2 else rows


@dataclass
class Parcel:
    """Rows of one source rank for one engine rank."""

    source: tuple[int, int]  # pipeline stage, tensor rank
    taker: int  # tensor rank of the engine
    dtype: torch.dtype
    numel: int = 0
    parts: list[ShardRows] = field(default_factory=list)
    landings: list[Landing] = field(default_factory=list)

    def for_sender(self) -> Parcel:
        """Without what only the taker reads."""
        return Parcel(self.source, self.taker, self.dtype, self.numel, self.parts)

    def fill(self, buffer: Tensor, own: dict[str, Tensor]) -> None:
        """Put the source's rows into ``buffer`` [numel]."""
        offset = 0
        for part in self.parts:
            values = part.of(own)
            buffer[offset : offset + values.numel()].view(values.shape).copy_(values)
            offset += values.numel()

    def land(self, buffer: Tensor, write: Write) -> None:
        """Hand every piece of the received ``buffer`` [numel] over."""
        for landing in self.landings:
            values = buffer[landing.offset : landing.offset + math.prod(landing.shape)]
            write(landing.target, landing.row, landing.column, values.view(landing.shape))


class ParcelPlan:
    """The parcels of every rank of one engine, in the order in which all ranks pass them."""

    def __init__(self, shards: TrainerShards, layout: EngineLayout, limit: int) -> None:
        """``limit``: bytes of a parcel, unless one row is longer. Raises :class:`PlanError`."""
        self.parcels: list[Parcel] = []
        self._open: dict[tuple[object, ...], Parcel] = {}
        table, taken = Mapping(shards.hf), [list[Copy]() for _ in range(layout.size)]
        for held in shards.held:
            rule, names = table.find(held.name)
            for taker in range(layout.size):
                tensor, sizes = shards.tensor, table.sizes
                copies = copies_of(
                    rule, names, held.shape, sizes, tensor, taker, layout, any_columns=True
                )
                for copy in copies:
                    self._add(held, copy, taker, shards.tensor, limit)
                taken[taker] += copies
        self._open.clear()
        for taker, copies in enumerate(taken):
            if missing := uncovered(copies, layout, taker, table.sizes.vocab):
                raise PlanError(f"no source for the engine's {missing}")
        self.rows = [
            {name: real_rows(name, layout, taker, table.sizes.vocab) for name in layout.shapes}
            for taker in range(layout.size)
        ]

    def _add(self, held: Held, copy: Copy, taker: int, tensor: int, limit: int) -> None:
        """Put the copy's rows into parcels; what every rank holds comes from one of them."""
        shard = taker % tensor if copy.shard is None else copy.shard
        row_bytes = copy.width * held.dtype.itemsize
        step = max(1, limit // row_bytes)
        for done in range(0, copy.rows, step):
            rows = min(step, copy.rows - done)
            kind = ((held.stage, shard), taker, held.dtype)
            parcel = self._parcel(*kind, rows * row_bytes, limit)
            shape = (rows, copy.width) if len(held.shape) == 2 else (rows, *held.shape[1:])
            to = copy.target, copy.to_row + done, copy.to_column
            parcel.landings.append(Landing(parcel.numel, shape, *to))
            part = ShardRows(held.name, copy.row + done, rows, copy.column, copy.width)
            parcel.parts.append(part)
            parcel.numel += rows * copy.width

    def _parcel(
        self, source: tuple[int, int], taker: int, dtype: torch.dtype, size: int, limit: int
    ) -> Parcel:
        """One with room for ``size`` bytes: the open one of the kind, or a new one."""
        known = self._open.get((source, taker, dtype))
        if known is None or known.numel * dtype.itemsize + size > limit:
            known = self._open[source, taker, dtype] = Parcel(source, taker, dtype)
            self.parcels.append(known)
        return known


def buffers(parcels: Sequence[Parcel], device: torch.device) -> Iterator[Tensor]:
    """A buffer for each parcel in turn, from two that alternate: one is filled or emptied while
    the other is under way."""
    size = max((p.numel * p.dtype.itemsize for p in parcels), default=0)
    both = [
        torch.empty(size, dtype=torch.uint8, device=device) for _ in range(min(2, len(parcels)))
    ]
    for number, parcel in enumerate(parcels):
        used = parcel.numel * parcel.dtype.itemsize
        yield both[number % 2][:used].view(parcel.dtype)
