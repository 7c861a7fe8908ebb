"""The processes of an evaluation: which engine this one belongs to, and what rank 0 tells all.

No Megatron: ranks only wait for each other at the start and at the end, with engines of several
ranks in between. They meet by RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, whoever set them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from scope_megatron.config import ConfigError
from scope_megatron.job.launcher import end_with_launcher
from scope_megatron.parallel import agree, platform
from scope_megatron.parallel.meeting import meet

T = TypeVar("T")
_MEET_S = 1800.0
_PATIENCE = timedelta(days=30)  # engines finish at different times; a lost rank ends the others


@dataclass(frozen=True)
class Ranks:
    """This process among all, and its engine among the engines."""

    rank: int
    size: int
    engine: int  # number of this rank's engine
    engines: int
    is_leader: bool  # one rank of each engine grades and writes
    group: dist.ProcessGroup | None  # all ranks, on CPUs; None when this one is alone

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def from_main(self, make: Callable[[], T]) -> T:
        """Rank 0's value on every rank (collective); a ValueError of rank 0 is raised on all."""
        if self.group is None:
            return make()
        try:
            return agree.from_main(make, self.group)
        except ValueError as error:
            raise ConfigError(str(error)) from None  # one rank of a node tells it

    def wait(self) -> None:
        """Until all ranks are here."""
        if self.group is not None:
            # by the group itself: an engine that was closed has taken torch's table of groups along
            self.group.barrier().wait()

    def leave(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()


def join(engine_ranks: int) -> Ranks:
    """Prepare this process and meet the others (collective)."""
    end_with_launcher()
    if platform.has_cuda():
        torch.cuda.set_device(platform.device())
    else:
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    group = None
    if size > 1:
        meet(_MEET_S)
        group = dist.new_group(backend="gloo", timeout=_PATIENCE)
    return Ranks(
        rank=rank,
        size=size,
        engine=rank // engine_ranks,
        engines=size // engine_ranks,
        is_leader=rank % engine_ranks == 0,
        group=group,
    )
