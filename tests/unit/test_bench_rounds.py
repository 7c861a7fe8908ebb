"""Benchmarks that take turns: prescribed lengths, slowest ranks, and a contestant that dies."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from benchmarks import bench_step, rounds
from benchmarks.lengths import length_of
from benchmarks.rounds import Contestant, alternate, medians

WORKER = """
import os, sys
from benchmarks.rounds import serve
rank, number = int(os.environ["RANK"]), 0
def step():
    global number
    number += 1
    if "dies" in sys.argv and number == 2:
        os._exit(3)
    return {"step": number + 10.0 * rank}
serve(step)
"""


def test_lengths_are_the_same_for_everyone_and_long_tailed() -> None:
    assert length_of("natural", 512, 1, 0) is None
    assert length_of("equal", 512, 1, 0) == 512
    drawn = [length_of("long", 512, 3, position) or 0 for position in range(4000)]
    assert drawn == [length_of("long", 512, 3, position) for position in range(4000)]
    assert (min(drawn), max(drawn)) == (8, 512)
    assert statistics.median(drawn) == pytest.approx(64, rel=0.1)
    assert statistics.mean(drawn) > 1.3 * statistics.median(drawn)


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    (tmp_path / "bench_rounds_worker.py").write_text(WORKER)
    path = {"PYTHONPATH": f"{rounds.ROOT}:{tmp_path}"}
    started: list[Contestant] = []

    def one(name: str, *arguments: str) -> Contestant:
        made = Contestant(name, "bench_rounds_worker", arguments, 2, tmp_path, path)
        started.append(made)
        return made

    yield one
    for contestant in started:
        contestant.stop()


@pytest.mark.timeout(120)
def test_turns(start) -> None:  # type: ignore[no-untyped-def]
    both = [start("a"), start("b")]
    alternate(both, rounds=3, warm=1)
    for one in both:  # the slowest rank's, without the warm round
        assert [s["step"] for s in one.steps] == [12.0, 13.0, 14.0]
    assert medians(both[0].steps) == {"step": 13.0}


@pytest.mark.timeout(120)
def test_a_contestant_that_dies_is_named(start) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(SystemExit, match="c: a rank ended"):
        alternate([start("c", "dies")], rounds=3, warm=0)


def test_ratios() -> None:
    scope = {"step": 12.0, "rollout": 4.0, "student forward": 2.0, "teacher forward": 1.0}
    told = bench_step.ratios(
        {"scope": scope, "grpo": {"step": 10.0}, "naive": {"step": 18.0}, "grpo-kl": {"step": 12.0}}
    )
    assert told == {
        "scope over grpo": 1.2,
        "arithmetic's": 1.1,
        "over arithmetic's": 1.091,
        "scope over grpo with KL": 1.0,
        "naive over scope": 1.5,
    }
