"""Ranks with different numbers, values and errors come out with the same."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch.distributed as dist

from scope_megatron.parallel.agree import (
    all_max,
    all_sum,
    any_rank,
    barrier,
    from_all,
    from_main,
    raise_together,
)
from tests.support.harness import run_distributed_test


def _told(rank: int, error: Exception | None) -> str:
    try:
        raise_together(error)
    except OSError as found:
        return f"{type(found).__name__}: {found}"
    return "none"


def _refused(rank: int) -> str:
    def refuse() -> None:
        raise ValueError(f"of rank {rank}")

    with pytest.raises(ValueError) as found:
        from_main(refuse)
    return str(found.value)


def agree_on_everything(rank: int, world_size: int) -> dict[str, Any]:
    alone = dist.new_group([rank], use_local_synchronization=True)
    called = []
    barrier()
    barrier(alone)
    return {
        "sum": all_sum([rank, 0.5, 2**53 - 1 - rank]),
        "max": all_max([rank, -rank, math.nan if rank == 0 else 1.0]),
        "sum alone": all_sum([rank], alone),
        "any": [any_rank(rank == 1), any_rank(False)],
        "any alone": any_rank(rank == 1, alone),
        "main": from_main(lambda: called.append(rank) or f"rank {rank}"),
        "called": len(called),
        "refused": _refused(rank),
        "all": from_all({"rank": rank}),
        "no error": _told(rank, None),
        "an error": _told(rank, FileNotFoundError(f"of rank {rank}") if rank == 1 else None),
        "two errors": _told(rank, OSError(f"of rank {rank}")),
    }


@pytest.mark.timeout(120)
def test_ranks_agree() -> None:
    first, second = run_distributed_test(agree_on_everything, 2)
    assert (first.pop("sum alone"), second.pop("sum alone")) == ([0.0], [1.0])
    assert (first.pop("any alone"), second.pop("any alone")) == (False, True)
    assert (first.pop("called"), second.pop("called")) == (1, 0), "the others are not asked"
    assert first == second
    assert first["sum"] == [1.0, 1.0, float(2**54 - 3)], "float64: counts stay exact"
    assert first["max"] == [1.0, 0.0, math.inf], "a NaN is never lost"
    assert first["any"] == [True, False]
    assert first["main"] == "rank 0" and first["refused"] == "of rank 0"
    assert first["all"] == [{"rank": 0}, {"rank": 1}]
    assert first["no error"] == "none"
    assert first["an error"] == "FileNotFoundError: of rank 1"
    assert first["two errors"] == "OSError: of rank 0"
