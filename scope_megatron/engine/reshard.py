"""Megatron's shards straight into the engine's parameters, by a plan that is made once.

The plan says of every row of every Megatron shard which engine rank takes it, and where to. It is
found by sending the numbers of the rows through the conversion table (``Operation.to_hf``), so it
knows no layout of its own. An engine rank that needs only its own rank's shards copies them and
receives nothing; others get exactly the shards they need from their tensor group, and what other
pipeline stages hold by one broadcast. Tensors larger than a bucket are cut into rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from scope_megatron.convert.gather import global_parameters, of_all_stages
from scope_megatron.convert.mapping import Mapping, Shape
from scope_megatron.engine.placement import (
    Copy,
    EngineLayout,
    PlanError,
    Wanted,
    copies_of,
    real_rows,
    stretches,
    uncovered,
)

if TYPE_CHECKING:
    from scope_megatron.engine.source import ModelParameters

Write = Callable[[str, int, int, Tensor], object]

__all__ = ["EngineLayout", "Held", "PlanError", "ReshardPlan", "held_parameters"]


@dataclass(frozen=True)
class Held:
    """A parameter as each tensor rank of its pipeline stage holds it."""

    name: str
    shape: Shape
    dtype: torch.dtype
    stage: int

    @property
    def width(self) -> int:
        return math.prod(self.shape[1:])

    @property
    def row_bytes(self) -> int:
        return self.width * int(self.dtype.itemsize)


@dataclass(frozen=True)
class _Move:
    """Rows of a source rank's part of a bucket -> a place in an engine parameter."""

    shard: int | None  # None: this rank's
    offset: int  # in that part, in elements
    shape: Shape
    target: str
    to_row: int
    to_column: int


@dataclass
class _Bucket:
    """Rows of one stage and dtype that the same ranks take, and this rank's share of the work."""

    stage: int
    dtype: torch.dtype
    wanted: Wanted
    numel: int = 0  # per source rank
    parts: list[tuple[str, int, int]] = field(default_factory=list)  # parameter, first row, rows
    moves: list[_Move] = field(default_factory=list)

    def sources(self, rank: int) -> tuple[int, ...]:
        """Tensor ranks whose part tensor rank ``rank`` takes."""
        return _sources(self.wanted, rank)


def _sources(wanted: Wanted, rank: int) -> tuple[int, ...]:
    return (rank,) if wanted is None else wanted[rank % len(wanted)]


def _slots(wanted: Wanted, tensor: int) -> int:
    """Parts that a rank's buffer holds at most: those it takes, and its own to be sent."""
    return max(len({*_sources(wanted, rank), rank}) for rank in range(tensor))


class ReshardPlan:
    """Plan of the transfer from one model to one engine; ``received``: bytes of the last run."""

    def __init__(self, source: ModelParameters, layout: EngineLayout) -> None:
        """Collective over the tensor x pipeline ranks; each may raise :class:`PlanError`.

        Raises on a rank only after the last collective, so that the ranks can agree afterwards.
        """
        self.topology = source.topology
        self.received = 0
        held = held_parameters(source)
        tensor, engine_rank = self.topology.tp_size, self.topology.tp_rank % layout.size
        if tensor % layout.size:
            raise PlanError(f"{layout.size} engine ranks do not divide the tensor ranks")
        table = Mapping(source.hf)
        self._buckets: list[_Bucket] = []
        taken: list[Copy] = []
        for parameter in held:
            rule, names = table.find(parameter.name)
            copies = [
                copies_of(rule, names, parameter.shape, table.sizes, tensor, rank, layout)
                for rank in range(layout.size)
            ]
            mine = copies[engine_rank]
            self._add(parameter, copies, mine, source.bucket_bytes)
            taken += mine
        self.rows = {  # of each engine parameter; those that follow are padding
            name: real_rows(name, layout, engine_rank, table.sizes.vocab) for name in layout.shapes
        }
        missing = uncovered(taken, layout, engine_rank, table.sizes.vocab)
        if missing:
            raise PlanError(f"no source for the engine's {missing}")

    def _add(self, parameter: Held, copies: list[list[Copy]], mine: list[Copy], limit: int) -> None:
        """Cut the parameter into rows that fit a bucket, and put them into buckets."""
        for start, count, wanted in stretches(copies):
            slots = _slots(wanted, self.topology.tp_size)
            step = max(1, limit // (slots * parameter.row_bytes))
            for first in range(start, start + count, step):
                rows = min(step, start + count - first)
                self._add_rows(parameter, mine, wanted, (first, rows), limit)

    def _add_rows(
        self, parameter: Held, mine: list[Copy], wanted: Wanted, span: tuple[int, int], limit: int
    ) -> None:
        first, rows = span
        bucket = self._bucket(parameter, wanted, rows * parameter.width, limit)
        for copy in mine:
            low, high = max(first, copy.row), min(first + rows, copy.row + copy.rows)
            if low < high:
                bucket.moves.append(
                    _Move(
                        copy.shard,
                        bucket.numel + (low - first) * parameter.width,
                        (high - low, *parameter.shape[1:]),
                        copy.target,
                        copy.to_row + low - copy.row,
                        copy.to_column,
                    )
                )
        bucket.parts.append((parameter.name, first, rows))
        bucket.numel += rows * parameter.width

    def _bucket(self, parameter: Held, wanted: Wanted, numel: int, limit: int) -> _Bucket:
        """An open bucket of the kind with room for ``numel`` elements of a shard, or a new one."""
        kind = (parameter.stage, parameter.dtype, wanted)
        size = _slots(wanted, self.topology.tp_size) * parameter.dtype.itemsize
        for bucket in reversed(self._buckets):
            if (bucket.stage, bucket.dtype, bucket.wanted) == kind:
                if size * (bucket.numel + numel) <= limit:
                    return bucket
                break
        self._buckets.append(_Bucket(*kind))
        return self._buckets[-1]

    @torch.no_grad()
    def run(self, source: ModelParameters, write: Write) -> None:
        """Call ``write`` for every piece of the engine's parameters; a collective.

        Its arguments: parameter, first row, first column, values. The values are overwritten by a
        later bucket: they are to be copied.

        Two buffers of at most one bucket each: while one is copied the next is under way.
        """
        self.received = 0
        own = {name: tensor.detach() for name, tensor in global_parameters(source.model)}
        buffers: list[Tensor] = []
        before: tuple[_Bucket, Tensor, list[dist.Work]] | None = None
        for bucket in self._buckets:
            if self._is_local(bucket):
                _hand_over(bucket, _own_rows(bucket, own), write)
                continue
            if len(buffers) < 2:
                device = next(iter(own.values())).device
                buffers.append(torch.empty(self._buffer_bytes(), dtype=torch.uint8, device=device))
            else:
                buffers.reverse()
            parts = self._parts(bucket, buffers[-1])
            works = self._send(bucket, parts, own)
            if before is not None:
                self._land(*before, write)
            before = bucket, parts, works
        if before is not None:
            self._land(*before, write)

    def _is_local(self, bucket: _Bucket) -> bool:
        ranks = range(self.topology.tp_size)
        return self.topology.pp_size == 1 and all(bucket.sources(r) == (r,) for r in ranks)

    def _buffer_bytes(self) -> int:
        tensor = self.topology.tp_size
        return max(
            _slots(bucket.wanted, tensor) * bucket.numel * int(bucket.dtype.itemsize)
            for bucket in self._buckets
            if not self._is_local(bucket)
        )

    def _order(self, bucket: _Bucket) -> list[int]:
        """Source ranks of the buffer's parts; this rank's own comes last if it only sends it."""
        sources, rank = bucket.sources(self.topology.tp_rank), self.topology.tp_rank
        return [*sources, *([] if rank in sources else [rank])]

    def _parts(self, bucket: _Bucket, buffer: Tensor) -> Tensor:
        """The buffer as [source ranks, elements]."""
        count = len(self._order(bucket))
        size = count * bucket.numel * bucket.dtype.itemsize
        return buffer[:size].view(bucket.dtype).view(count, bucket.numel)

    def _send(self, bucket: _Bucket, parts: Tensor, own: dict[str, Tensor]) -> list[dist.Work]:
        """Begin to fill ``parts``: among the tensor ranks of the stage, then over the pipeline."""
        topology = self.topology
        rank, order = topology.tp_rank, self._order(bucket)
        works: list[dist.Work] = []
        if topology.pp_rank == bucket.stage:
            offset, mine = 0, parts[order.index(rank)]
            for rows in _own_rows(bucket, own):
                mine[offset : offset + rows.numel()].view(rows.shape).copy_(rows)
                offset += rows.numel()
            works = self._exchange(bucket, parts, mine)
        if topology.pp_size > 1 and bucket.sources(rank):
            for work in works:
                work.wait()
            needed = parts[: len(bucket.sources(rank))]
            if topology.pp_rank != bucket.stage:
                self.received += needed.nbytes
            source = dist.get_global_rank(topology.pp_group, bucket.stage)
            group = topology.pp_group
            works = [dist.broadcast(needed, src=source, group=group, async_op=True)]
        return works

    def _exchange(self, bucket: _Bucket, parts: Tensor, mine: Tensor) -> list[dist.Work]:
        rank, group = self.topology.tp_rank, self.topology.tp_group
        operations = []
        for peer in range(self.topology.tp_size):
            if peer == rank:
                continue
            place = dist.get_global_rank(group, peer)
            if rank in bucket.sources(peer):
                operations.append(dist.P2POp(dist.isend, mine, place, group))
            if peer in bucket.sources(rank):
                part = parts[self._order(bucket).index(peer)]
                self.received += part.nbytes
                operations.append(dist.P2POp(dist.irecv, part, place, group))
        return list(dist.batch_isend_irecv(operations)) if operations else []

    def _land(
        self,
        bucket: _Bucket,
        parts: Tensor,
        works: list[dist.Work],
        write: Write,
    ) -> None:
        for work in works:
            work.wait()
        order = self._order(bucket)
        for move in bucket.moves:
            shard = self.topology.tp_rank if move.shard is None else move.shard
            part = parts[order.index(shard)]
            source = part[move.offset : move.offset + math.prod(move.shape)]
            write(move.target, move.to_row, move.to_column, source.view(move.shape))


def _hand_over(bucket: _Bucket, rows: Iterator[Tensor], write: Write) -> None:
    """The moves of a bucket that is all this rank's own, from the parameters themselves."""
    moves, index, offset = bucket.moves, 0, 0
    for part in rows:
        flat = part.reshape(-1)
        while index < len(moves) and moves[index].offset < offset + flat.numel():
            move = moves[index]
            start = move.offset - offset
            source = flat[start : start + math.prod(move.shape)].view(move.shape)
            write(move.target, move.to_row, move.to_column, source)
            index += 1
        offset += flat.numel()


def _own_rows(bucket: _Bucket, own: dict[str, Tensor]) -> Iterator[Tensor]:
    return (own[name][first : first + rows] for name, first, rows in bucket.parts)


def held_parameters(source: ModelParameters) -> list[Held]:
    """Parameters held by every pipeline stage, in the order of the stages (a collective)."""
    topology, table = source.topology, Mapping(source.hf)
    mine = [
        Held(name, tuple(tensor.shape), tensor.dtype, topology.pp_rank)
        for name, tensor in global_parameters(source.model)
        if not table.find(name)[0].duplicate
    ]
    return of_all_stages(mine, topology)
