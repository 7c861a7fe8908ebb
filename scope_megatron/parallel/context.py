"""Context parallelism: the ranks of a group share the tokens of each pack.

A pack of T tokens is cut into 2 cp pieces, and rank r has the pieces r and 2 cp - 1 - r: of a
sequence as long as the pack every rank then has the same part of causal attention's arithmetic.
Everything but attention works on a token by itself. The packs themselves, with their rows, targets,
weights and scores, stay whole on every rank and numbered over the whole pack; a rank computes the
rows whose tokens it has, and leaves zeros for the others', which a sum over the group fills in.
So nothing that is laid out on rows knows of the cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from scope_megatron.types import PackedBatch

if TYPE_CHECKING:
    from scope_megatron.parallel.topology import Topology


@dataclass(frozen=True)
class Segment:
    """Neighbouring tokens of one sequence that this rank has: queries of one causal attention."""

    first: int  # among this rank's tokens
    start: int  # of their sequence, among the pack's tokens
    begin: int  # their place among the pack's tokens
    end: int


@dataclass(frozen=True)
class Launch:
    """Bounds of the parts that one kernel of attention takes, as FlashAttention asks for them."""

    bounds: Tensor  # [parts + 1] int32
    longest: int

    @classmethod
    def of(cls, lengths: list[int], device: torch.device) -> Launch:
        bounds = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
        return cls(_moved(bounds, device), max(lengths))


@dataclass(frozen=True)
class ContextShare:
    """The tokens of a pack that this rank has, ascending, and what attention asks of them.

    Made once per pack: a tensor that a layer made of the host's numbers would wait for the device.
    """

    group: ProcessGroup
    tokens: Tensor  # [t] int64, which of the pack's T tokens
    held: Tensor  # [T] int64: the tokens of all ranks, side by side
    order: Tensor  # [T] int64: where each token of the pack lies among those, the inverse
    segments: tuple[Segment, ...]
    seen: Tensor  # [k] int64: the tokens that each segment sees, segment after segment
    queries: Launch  # the segments
    keys: Launch  # what they see

    @classmethod
    def of(cls, pack: PackedBatch, topology: Topology) -> ContextShare | None:
        """This rank's share; None without context parallelism."""
        if topology.cp_size == 1:
            return None
        assert topology.cp_group is not None
        ranks, total = topology.cp_size, pack.num_tokens
        pieces = [pieces_of(rank, ranks, total) for rank in range(ranks)]
        device = pack.tokens.device
        held = torch.cat([torch.arange(low, high) for each in pieces for low, high in each])
        size = total // ranks
        segments = _segments(pack.bounds, pieces[topology.cp_rank])
        return cls(
            group=topology.cp_group,
            tokens=_moved(held[topology.cp_rank * size : (topology.cp_rank + 1) * size], device),
            held=_moved(held, device),
            order=_moved(held.argsort(), device),
            segments=segments,
            seen=_moved(torch.cat([torch.arange(s.start, s.end) for s in segments]), device),
            queries=Launch.of([s.end - s.begin for s in segments], device),
            keys=Launch.of([s.end - s.start for s in segments], device),
        )

    def gather(self, local: Tensor) -> Tensor:
        """[t, ...] of this rank's tokens -> [T, ...] of all tokens in the pack's order.

        The backward sums the gradients of a token over the ranks.
        """
        gathered: Tensor = _Gather.apply(local, self)
        return gathered


def _moved(numbers: Tensor, device: torch.device) -> Tensor:
    """The host's numbers on ``device``; nobody waits for a copy to a GPU."""
    return numbers.to(device, non_blocking=device.type == "cuda")


def pieces_of(rank: int, ranks: int, total: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """(begin, end) of the two pieces of a pack of ``total`` tokens that a rank has."""
    size, rest = divmod(total, 2 * ranks)
    assert not rest, "packs are padded: Topology.pack_multiple"
    last = 2 * ranks - 1 - rank
    return (rank * size, (rank + 1) * size), (last * size, (last + 1) * size)


def _segments(bounds: list[int], pieces: tuple[tuple[int, int], ...]) -> tuple[Segment, ...]:
    found, first = [], 0
    for low, high in pieces:
        for start, end in pairwise(bounds):
            begin, stop = max(low, start), min(high, end)
            if begin < stop:
                found.append(Segment(first + begin - low, start, begin, stop))
        first += high - low
    return tuple(found)


class _Gather(torch.autograd.Function):
    """All-gather along the first dimension, into the pack's order; its backward is a
    reduce-scatter. Both orders are permutations, each the other's gradient: torch's own for an
    index would sort it and add."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, local: Tensor, share: ContextShare
    ) -> Tensor:
        ctx.share = share
        local = local.contiguous()
        out = local.new_empty((share.group.size() * local.size(0), *local.shape[1:]))
        dist.all_gather_into_tensor(out, local, group=share.group)
        return out.index_select(0, share.order)

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor
    ) -> tuple[Tensor, None]:
        share: ContextShare = ctx.share
        gradient = gradients[0].index_select(0, share.held)
        out = gradient.new_empty((gradient.size(0) // share.group.size(), *gradient.shape[1:]))
        dist.reduce_scatter_tensor(out, gradient, group=share.group)
        return out, None


def own_rows(pack: PackedBatch, topology: Topology) -> tuple[Tensor, Tensor]:
    """(number, place) [n] int64 of the pack's R rows that this rank computes, ascending: which row
    it is, and where its token lies among this rank's tokens."""
    count = torch.arange(pack.num_rows, device=pack.rows.device)
    if topology.cp_size == 1:
        return count, pack.rows
    places = torch.full((pack.num_tokens,), -1, device=pack.rows.device)
    first = 0
    for low, high in pieces_of(topology.cp_rank, topology.cp_size, pack.num_tokens):
        places[low:high] = torch.arange(first, first + high - low, device=pack.rows.device)
        first += high - low
    place = places[pack.rows]
    return count[place >= 0], place[place >= 0]


def spread_rows(values: Tensor, numbers: Tensor, count: int) -> Tensor:
    """[n, ...] of the rows ``numbers`` -> [count, ...] with zeros elsewhere."""
    if len(values) == count:
        return values
    return values.new_zeros((count, *values.shape[1:])).index_copy(0, numbers, values)


def sum_over_context(values: Tensor, topology: Topology) -> Tensor:
    """The sum over the ranks that share a pack: each gives its rows, and zeros for the others'."""
    if topology.cp_size > 1:
        dist.all_reduce(values, group=topology.cp_group)
    return values
