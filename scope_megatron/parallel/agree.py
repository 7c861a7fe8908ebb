"""Agreement among ranks: numbers reduced, values broadcast or gathered, errors raised together.

Every function is a collective: each rank of the group calls it, and each gets the same result.
``group`` None is all ranks of the job.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup

from scope_megatron.parallel import platform

_T = TypeVar("_T")


def all_sum(numbers: Sequence[float], group: ProcessGroup | None = None) -> list[float]:
    """The numbers at each place, added over the ranks in float64."""
    return _reduced(numbers, dist.ReduceOp.SUM, group)


def all_max(numbers: Sequence[float], group: ProcessGroup | None = None) -> list[float]:
    """The largest number at each place; a NaN of any rank comes out as inf."""
    known = [math.inf if math.isnan(number) else number for number in numbers]
    return _reduced(known, dist.ReduceOp.MAX, group)


def any_rank(flag: bool, group: ProcessGroup | None = None) -> bool:
    """Whether ``flag`` is set on at least one rank."""
    return all_max([float(flag)], group) == [1.0]


def from_main(make: Callable[[], _T], group: ProcessGroup | None = None) -> _T:
    """Broadcast the value or the exception of ``make``, which only rank 0 of the job calls."""
    found: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            found[0] = make()
        except Exception as error:
            found[1] = error
    dist.broadcast_object_list(found, src=0, group=group)
    if found[1] is not None:
        raise found[1]
    made: _T = found[0]
    return made


def from_first(make: Callable[[], _T], group: ProcessGroup) -> _T:
    """Broadcast the value or the exception of ``make``, which only the group's first rank calls."""
    found: list[Any] = [None, None]
    if dist.get_rank(group) == 0:
        try:
            found[0] = make()
        except Exception as error:
            found[1] = error
    dist.broadcast_object_list(found, src=dist.get_global_rank(group, 0), group=group)
    if found[1] is not None:
        raise found[1]
    made: _T = found[0]
    return made


def from_all(value: _T, group: ProcessGroup | None = None) -> list[_T]:
    """Every rank's value, in the order of the group's ranks."""
    gathered: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(gathered, value, group=group)
    return gathered


def raise_together(error: Exception | None, group: ProcessGroup | None = None) -> None:
    """Raise on every rank the error of the first rank that passes one; return if none does."""
    for found in from_all(error, group):
        if found is not None:
            raise found


def barrier(group: ProcessGroup | None = None) -> None:
    """Wait until every rank is here.

    NCCL is told this rank's GPU: by itself it takes the one of the rank's number in its world, and
    where ranks that sample are a world of their own that GPU is another rank's.
    """
    on_gpus = dist.get_backend(group) == "nccl"
    dist.barrier(group, device_ids=[platform.device().index] if on_gpus else None)


def _reduced(
    numbers: Sequence[float], operation: dist.ReduceOp.RedOpType, group: ProcessGroup | None
) -> list[float]:
    values = torch.tensor(numbers, dtype=torch.float64, device=platform.device())
    dist.all_reduce(values, op=operation, group=group)
    found: list[float] = values.tolist()
    return found
