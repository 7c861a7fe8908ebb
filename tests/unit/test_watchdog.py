"""Whom the watchdog names, on a clock that the test turns."""

from __future__ import annotations

from dataclasses import replace

from scope_megatron.config import FaultsConfig
from scope_megatron.exits import HUNG, LOST_RANK
from scope_megatron.job.watchdog import Beat, Diagnosis, Judge

SETTINGS = FaultsConfig(heartbeat_timeout_s=25, hang_timeout_s=600)


class World:
    """Ranks that beat once a second, but for those that are told not to."""

    def __init__(self, size: int = 4) -> None:
        self.now = 1000.0
        self.beats = {
            rank: Beat(0, 7, "train", 40, 0.0, f"node{rank}", 100 + rank) for rank in range(size)
        }
        self.judge = Judge(SETTINGS, 1.0)

    def second(self, silent: tuple[int, ...] = (), idle: float = 1.0) -> Diagnosis | None:
        """One second later; ``idle``: how much longer every rank has been in its phase."""
        self.now += 1.0
        for rank, beat in self.beats.items():
            if rank not in silent:
                beat = replace(beat, count=beat.count + 1, seconds=beat.seconds + idle)
            self.beats[rank] = beat
        return self.judge.look(self.now, self.beats)


def test_silent_rank_is_named_after_the_timeout() -> None:
    world = World()
    for _ in range(10):
        assert world.second() is None
    for _ in range(25):
        assert world.second(silent=(2,)) is None
    verdict = world.second(silent=(2,))
    assert verdict is not None and verdict.code == LOST_RANK
    assert verdict.message == (
        "rank 2 (node2, pid 102; step 7, phase train) gave no sign of life for 25 s"
    )


def test_late_heartbeats_are_no_fault() -> None:
    world = World()
    for _ in range(5):
        for _ in range(20):
            assert world.second(silent=(1, 3)) is None
        assert world.second() is None


def test_this_process_was_stopped_itself() -> None:
    """Ctrl-Z and fg, or a laptop's lid: all heartbeats are old at once, and then go on."""
    world = World()
    world.second()
    world.now += 3600
    assert world.second(silent=(0, 1, 2, 3)) is None
    assert world.second() is None


def test_hang_names_who_is_behind() -> None:
    world = World()
    world.beats[3] = replace(world.beats[3], order=39, phase="score")
    for _ in range(600):
        assert world.second() is None
    verdict = world.second()
    assert verdict is not None and verdict.code == HUNG
    assert verdict.message.startswith("rank 3 (node3, pid 103; step 7, phase score) made no")
    assert "faults.hang_timeout_s" in verdict.message


def test_progress_is_no_hang() -> None:
    world = World()
    for second in range(3000):
        if second % 500 == 0:
            world.beats = {r: replace(b, seconds=0.0) for r, b in world.beats.items()}
        assert world.second() is None


def test_many_are_counted() -> None:
    world = World(size=9)
    world.second()
    for _ in range(26):
        verdict = world.second(silent=tuple(range(1, 8)))
    assert verdict is not None and verdict.message.count("pid") == 4
    assert " and 3 more gave no sign" in verdict.message


def test_a_hang_is_the_fault_of_the_kind_that_waits_for_nobody() -> None:
    """Two ranks train, two only sample; phases of different kinds are not counted alike."""
    judge = Judge(SETTINGS, 1.0, training=2)
    late = SETTINGS.hang_timeout_s + 1
    hosts = ("node0", 1)

    def beats(count: int, *ranks: tuple[str, int, float, bool]) -> dict[int, Beat]:
        return {
            rank: Beat(count, 7, phase, order, seconds, *hosts, waits)
            for rank, (phase, order, seconds, waits) in enumerate(ranks)
        }

    waiting, idle = ("rollout", 40, late, True), ("wait", 3, late, True)
    behind = beats(1, waiting, waiting, ("rollout", 9, late, False), ("verify", 10, late, False))
    found = judge.look(0.0, behind)
    assert found is not None and found.message.startswith("rank 2 (node0"), "it samples too long"
    training = ("train", 40, late, False)
    found = judge.look(1.0, beats(2, training, ("train", 39, late, False), idle, idle))
    assert found is not None and found.message.startswith("rank 1 (node0")
    soon = ("train", 41, 1.0, False)
    assert judge.look(2.0, beats(3, soon, soon, idle, idle)) is None, "idle engines do not hang"
    found = judge.look(3.0, beats(4, waiting, waiting, idle, idle))
    assert found is not None, "all wait for each other"
