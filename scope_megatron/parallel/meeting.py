"""Rendezvous of the ranks of a job, also after torchrun restarted them.

torchrun keeps one store over its restarts, with the addresses of ranks that are gone, and PyTorch
reads them. So the ranks agree on a name that is new for every start and keep apart by it. The
restart count would not do: on several nodes torchrun's agents count differently.

Where some ranks only sample (``rollout.placement``), the job's first ranks train and the others
sample. Each kind is a torch.distributed world of its own: megatron-core and vLLM lay their groups
out over a whole world, and each sees the ranks that are its own. What joins the two is in
``remote/``; the watchdog, the launcher and people count the ranks of the job.
"""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from scope_megatron.parallel import platform

_POLL_S = 0.05
_name = "0"  # of this start, the same on all ranks


@dataclass(frozen=True)
class JobPlace:
    """This process among the ranks of the job, all kinds together."""

    rank: int
    size: int
    training: int  # the first so many ranks train, the others only sample
    store: dist.Store | None = None  # of this start, where the kinds meet

    @property
    def samples_only(self) -> bool:
        return self.rank >= self.training


_place: JobPlace | None = None


def start_name() -> str:
    """Name of this start of the ranks, different from earlier starts' in the same store."""
    return _name


def job_place() -> JobPlace:
    """Where :func:`meet` put this process; without it, the default group is the job."""
    if _place is not None:
        return _place
    return JobPlace(dist.get_rank(), dist.get_world_size(), dist.get_world_size())


def meet(timeout_s: float, sampling: int = 0) -> None:
    """``init_process_group`` by RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT (collective).

    With ``sampling`` > 0 so many ranks of the job, its last ones, only sample: they and those
    before them each become a world.
    """
    global _name
    limit = timedelta(seconds=timeout_s)
    if sampling:
        _meet_by_kind(limit, sampling)
        return
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":  # else rank 0 makes a new store
        dist.init_process_group(platform.backend(), timeout=limit)
        return
    store, rank, size = next(rendezvous("env://", timeout=limit))
    _name = agree_on_name(dist.PrefixStore("scope_megatron/meeting", store), rank, size, timeout_s)
    own = dist.PrefixStore(f"scope_megatron/{_name}", store)
    dist.init_process_group(
        platform.backend(), store=own, rank=rank, world_size=size, timeout=limit
    )


def _meet_by_kind(limit: timedelta, sampling: int) -> None:
    global _name, _place
    store, rank, size = next(rendezvous("env://", timeout=limit))
    seconds = limit.total_seconds()
    _name = agree_on_name(dist.PrefixStore("scope_megatron/meeting", store), rank, size, seconds)
    own = dist.PrefixStore(f"scope_megatron/{_name}", store)
    _place = JobPlace(rank, size, size - sampling, own)
    first, ranks = (_place.training, sampling) if _place.samples_only else (0, _place.training)
    kind = "sampling" if _place.samples_only else "training"
    dist.init_process_group(
        platform.backend(),
        store=dist.PrefixStore(kind, own),
        rank=rank - first,
        world_size=ranks,
        timeout=limit,
    )


def own_address() -> str:
    """This machine's address on the network that the job's store is on. Nothing is sent."""
    master = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    family, kind, *_, address = socket.getaddrinfo(*master, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(address)
        return str(probe.getsockname()[0])


def agree_on_name(store: dist.Store, rank: int, size: int, timeout_s: float) -> str:
    """Rank 0's new name, on every rank, whatever an earlier start left in the store.

    Rank 0 shows its name with the nonce that it found of each rank. A rank that finds its own,
    which is as new, takes the name and says so; rank 0 shows it anew until all have.
    Raises TimeoutError.
    """
    nonce, deadline = uuid.uuid4().hex, time.monotonic() + timeout_s
    store.set(f"nonce/{rank}", nonce)
    while time.monotonic() < deadline:
        if rank == 0:
            nonces = store.multi_get([f"nonce/{other}" for other in range(size)])
            shown = {"name": nonce, "nonces": [found.decode() for found in nonces]}
            store.set("shown", json.dumps(shown))
            if size == 1 or store.check([f"{nonce}/{other}" for other in range(1, size)]):
                return nonce
        elif store.check(["shown"]):
            shown = json.loads(store.get("shown"))
            if shown["nonces"][rank : rank + 1] == [nonce]:
                store.set(f"{shown['name']}/{rank}", "taken")
                return str(shown["name"])
        time.sleep(_POLL_S)
    raise TimeoutError(f"rank {rank}: the {size} ranks of the job did not meet in {timeout_s} s")
