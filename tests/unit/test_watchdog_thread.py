"""What a rank's watchdog makes of the store: who is named, and by whom."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch.distributed as dist

from scope_megatron.config import FaultsConfig
from scope_megatron.exits import LOST_RANK
from scope_megatron.job.launcher import LOST_KEY
from scope_megatron.job.watchdog import Beat, Diagnosis, Progress, Watchdog

SIZE = 3


@pytest.fixture
def store() -> dist.TCPStore:
    """Every rank of three has given a sign of life, long after the hang limit but for rank 2."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for rank in range(SIZE):
        beat = Beat(7, 5, "train", 30 - rank, 900.0 + rank, f"node{rank}", 100 + rank)
        store.set(f"beat/{rank}", json.dumps(asdict(beat)))
    return store


def watchdog(
    monkeypatch: pytest.MonkeyPatch, path: Path, store: dist.TCPStore, rank: int
) -> Watchdog:
    monkeypatch.setattr(dist, "get_rank", lambda: rank)
    monkeypatch.setattr(dist, "get_world_size", lambda: SIZE)
    # so short a heartbeat timeout makes short intervals; these tests take less than it
    dog = Watchdog(FaultsConfig(heartbeat_timeout_s=2.0, hang_timeout_s=600), path, Progress())
    dog._store = dog._launcher = store
    return dog


def test_launcher_saw_a_rank_end_while_the_others_hang(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, store: dist.TCPStore
) -> None:
    """No connection broke: shared memory and NCCL wait for ever."""
    store.set(LOST_KEY, "0")
    verdict = watchdog(monkeypatch, tmp_path, store, rank=1)._look()
    assert verdict == Diagnosis(LOST_RANK, "rank 0 (node0, pid 100; step 5, phase train) went away")
    store.set(LOST_KEY, "2")
    assert watchdog(monkeypatch, tmp_path, store, rank=1)._look() is None, "rank 0 looks for it"
    dog = watchdog(monkeypatch, tmp_path, store, rank=0)
    dog._publish()
    verdict = dog._look()
    assert verdict is not None and "rank 2 (node2, pid 102; " in verdict.message
    assert json.loads(store.get("abort")) == asdict(verdict)


def test_error_of_a_witness_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, store: dist.TCPStore
) -> None:
    """All are alive, so that its own words are all that is known."""
    store.set("suspect", json.dumps([2, "NCCL error: unhandled cuda error"]))
    dog = watchdog(monkeypatch, tmp_path, store, rank=0)
    publish = dog._publish

    def all_publish() -> None:
        publish()
        for rank in (1, 2):
            beat = json.loads(store.get(f"beat/{rank}"))
            store.set(f"beat/{rank}", json.dumps(beat | {"count": beat["count"] + 1}))

    monkeypatch.setattr(dog, "_publish", all_publish)
    verdict = dog._look()
    assert verdict is not None and verdict.code == LOST_RANK
    assert verdict.message.startswith("rank 2 (node2, pid 102; ")
    assert verdict.message.endswith("lost a connection: NCCL error: unhandled cuda error")


def test_only_rank_0_judges_a_hang(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, store: dist.TCPStore
) -> None:
    """The others see rank 0 alone, and would blame it for whom it waits for."""
    assert watchdog(monkeypatch, tmp_path, store, rank=1)._look() is None
    verdict = watchdog(monkeypatch, tmp_path, store, rank=0)._look()
    assert verdict is not None and verdict.message.startswith("rank 2 (node2, ")


def test_who_speaks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, store: dist.TCPStore) -> None:
    """Without rank 0 (its machine may have held rank 1): the first rank of each machine."""
    heard = Diagnosis(LOST_RANK, "rank 0 (a) and rank 2 (b) hang")
    for rank, local, speaks in ((0, "0", True), (1, "1", True), (2, "2", False), (2, "0", True)):
        monkeypatch.setenv("LOCAL_RANK", local)
        assert watchdog(monkeypatch, tmp_path, store, rank)._speaks() is speaks
    store.set("abort", json.dumps(asdict(heard)))
    dog = watchdog(monkeypatch, tmp_path, store, rank=1)
    assert dog._look() == heard
    assert not dog._speaks(), "rank 0 has said it"
