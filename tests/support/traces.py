"""A trace that is made up, and what must hold of that of a run that went to its end."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from scope_megatron.trace import spans
from scope_megatron.trace.clock import Clock
from scope_megatron.trace.files import RankFile, Trace, TracedSpan, read_trace
from scope_megatron.trace.spans import Recorder, span, traced_errand, traced_step

PHASES = ("rollout", "verify", "deal", "score", "train", "sync")


def write_trace(run: Path, steps: Sequence[int]) -> None:
    """Of one rank that trains and one that samples."""
    for rank, kind in enumerate(("trains", "samples")):
        file = RankFile(run, rank, f"rank {rank} ({kind}, here)")
        spans.start(Recorder(file, Clock(), lambda step: step in steps))
        for step in steps:
            if rank:
                traced_errand(step, 0)
                with span("rollout", prompts=4):
                    time.sleep(0.004)
                continue
            with traced_step(step), span("rollout"):
                with span("sample", prompts=4):
                    time.sleep(0.002)
                with span("wait for engines"):
                    time.sleep(0.002)
            with span("grade", "grading", responses=2):
                time.sleep(0.001)
        spans.stop()


def require_trace(run: Path, ranks: int, steps: int, samplers: int = 0) -> Trace:
    """Every step of every training rank in full, their phases in order, within the step's time that
    the metrics know; one file of all. Returns the trace."""
    trace = read_trace(run)
    assert trace is not None
    assert trace.steps() == list(range(1, steps + 1))
    assert set(trace.names) == set(range(ranks + samplers))
    assert trace.clocks == dict.fromkeys(trace.names, "rank 0's clock"), "all on this machine"
    lines = (run / "metrics.jsonl").read_text().splitlines()
    seconds = {row["step"]: row for row in map(json.loads, lines) if "time/step" in row}
    for step in trace.steps():
        for rank in range(ranks):
            mine = [s for s in trace.spans if s.rank == rank and s.step == step]
            phases = [s for s in mine if s.lane == "step" and s.name in PHASES]
            assert [s.name for s in phases] == list(PHASES), (step, rank)
            for before, after in pairwise(phases):
                assert before.ended <= after.begun
            (whole,) = (s for s in mine if s.name == f"step {step}")
            assert whole.begun <= phases[0].begun and phases[-1].ended <= whole.ended
            if rank == 0:
                for phase in phases:
                    measured = seconds[step][f"time/{phase.name}"]
                    found = (phase.ended - phase.begun) / 1e6
                    # seconds, not a busy machine's stops between the two clocks
                    assert found == pytest.approx(measured, abs=5.0)
    merged = json.loads((run / "trace/trace.json").read_text())["traceEvents"]
    names = {event["name"] for event in merged if event["ph"] == "X"}
    expected = {"teacher scores", "forward and backward", "optimizer", "send parameters", "grade"}
    assert expected | set(PHASES) <= names
    assert (run / "timeline.png").stat().st_size > 10_000
    return trace


def seconds_of(spans: Iterable[TracedSpan]) -> float:
    return sum(one.ended - one.begun for one in spans) / 1e6


def overlapped(one: Iterable[TracedSpan], other: Iterable[TracedSpan]) -> float:
    """Seconds that the spans of the one list share with those of the other."""
    theirs = list(other)
    return sum(
        max(0, min(a.ended, b.ended) - max(a.begun, b.begun)) / 1e6 for a in one for b in theirs
    )
