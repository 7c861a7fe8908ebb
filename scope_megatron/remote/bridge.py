"""The process group of all ranks of the job, for tensors between the two kinds.

Each kind is a torch.distributed world (``parallel/meeting.py``), and torch's functions know one
world only: this group is outside of it, and addressed by ranks of the job.
"""

from __future__ import annotations

from datetime import timedelta

import torch.distributed as dist
from torch import Tensor

from scope_megatron.parallel import platform
from scope_megatron.parallel.meeting import JobPlace

_TAG = 17


class Bridge:
    """Sends and receives between two ranks of the job."""

    def __init__(self, place: JobPlace, timeout_s: float) -> None:
        """Collective over all ranks of the job."""
        assert place.store is not None
        store, limit = dist.PrefixStore("bridge", place.store), timedelta(seconds=timeout_s)
        self.place = place
        if platform.has_cuda():
            options = dist.ProcessGroupNCCL.Options()
            options._timeout = limit
            self._group = dist.ProcessGroupNCCL(store, place.rank, place.size, options)
        else:
            self._group = dist.ProcessGroupGloo(store, place.rank, place.size, limit)

    def send(self, tensor: Tensor, rank: int) -> dist.Work:
        """Begin to send to a rank of the job; ``tensor`` must stay as it is until it is done."""
        return self._group.send([tensor], rank, _TAG)

    def receive(self, tensor: Tensor, rank: int) -> dist.Work:
        """Begin to receive from a rank of the job into ``tensor``."""
        return self._group.recv([tensor], rank, _TAG)
