"""A second layout of the same ranks, for a model that is cut otherwise than the student.

megatron-core keeps one layout in the globals of ``parallel_state``; here each has its own set of
them, and :func:`using` puts one in place. A model is built, and runs, with its own in place.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from megatron.core import parallel_state
from torch.distributed import ProcessGroup

from scope_megatron.parallel.topology import Topology, layout_ranks

_GLOBAL = re.compile(r"_[A-Z][A-Z0-9_]*")


def _globals() -> dict[str, Any]:
    return {name: value for name, value in vars(parallel_state).items() if _GLOBAL.fullmatch(name)}


def create_second_topology(
    tensor: int,
    pipeline: int,
    sequence: bool = False,
    *,
    expert: int = 1,
    context: int = 1,
    timeout_s: float = 1800.0,
) -> Topology:
    """Process groups of another layout over the world (collective over all ranks). What
    :func:`create_topology` made stays in place."""
    kept = _globals()
    vars(parallel_state).update({name: {} if value == {} else None for name, value in kept.items()})
    try:
        topology = layout_ranks(
            tensor, pipeline, sequence, expert=expert, context=context, timeout_s=timeout_s
        )
        return replace(topology, own_groups=_globals())
    finally:
        vars(parallel_state).update(kept)


@contextmanager
def using(topology: Topology) -> Iterator[None]:
    """megatron-core works with this layout inside."""
    if topology.own_groups is None:
        yield
        return
    kept = _globals()
    vars(parallel_state).update(topology.own_groups)
    try:
        yield
    finally:
        vars(parallel_state).update(kept)


@dataclass(frozen=True)
class RankPlace:
    """Coordinates of a rank in a layout: tensor fastest, then context, data, pipeline."""

    tensor: int
    context: int
    data: int
    pipeline: int

    @classmethod
    def of(cls, rank: int, topology: Topology) -> RankPlace:
        rank, tensor = divmod(rank, topology.tp_size)
        rank, context = divmod(rank, topology.cp_size)
        pipeline, data = divmod(rank, topology.dp_size)
        return cls(tensor, context, data, pipeline)


@dataclass(frozen=True)
class Block:
    """The fewest ranks around this one that are whole replicas of both layouts: what one replica
    has, another of the other layout can reach inside."""

    group: ProcessGroup
    ranks: tuple[int, ...]  # of the world, ascending


def create_block(first: Topology, second: Topology, timeout_s: float = 1800.0) -> Block:
    """This rank's block (collective over all ranks)."""
    found: Block | None = None
    for ranks in blocks_of(first, second):
        group = dist.new_group(list(ranks), timeout=timedelta(seconds=timeout_s))
        if first.rank in ranks:
            found = Block(group, ranks)
    assert found is not None, "blocks hold every rank"
    return found


def blocks_of(first: Topology, second: Topology) -> list[tuple[int, ...]]:
    """All blocks, by their first ranks."""
    block = list(range(first.world_size))
    for topology in (first, second):
        replicas: dict[int, list[int]] = {}
        for rank in range(topology.world_size):
            replicas.setdefault(RankPlace.of(rank, topology).data, []).append(rank)
        for ranks in replicas.values():
            joined = {block[rank] for rank in ranks}
            block = [min(joined) if at in joined else at for at in block]
    return [
        tuple(rank for rank, at in enumerate(block) if at == first_) for first_ in sorted({*block})
    ]
