"""Ranks that start again find each other in a store that still holds what went before."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from scope_megatron.parallel.meeting import agree_on_name

RANKS = 3


def store_of(port: int, master: bool = False) -> dist.TCPStore:
    limit = timedelta(seconds=5)
    return dist.TCPStore("127.0.0.1", port, is_master=master, wait_for_workers=False, timeout=limit)


def meet(port: int, ranks: list[int], timeout_s: float = 5.0) -> list[str]:
    """Each rank in a thread, with a connection of its own."""
    with ThreadPoolExecutor(len(ranks)) as pool:
        calls = [
            pool.submit(agree_on_name, store_of(port), rank, RANKS, timeout_s) for rank in ranks
        ]
        return [call.result() for call in calls]


def test_every_start_has_a_name_of_its_own() -> None:
    server = store_of(0, master=True)
    names = []
    for _ in range(3):
        found = meet(server.port, [2, 0, 1])
        assert len(set(found)) == 1
        names.append(found[0])
        with pytest.raises((TimeoutError, dist.DistError)):  # a start that not all ranks lived to
            meet(server.port, [1, 2], timeout_s=0.3)
    assert len(set(names)) == 3
