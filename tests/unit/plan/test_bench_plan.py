"""What docs/planning.md says of published rows: which are met, and which are not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.plan_published import (
    GOLDEN,
    Iteration,
    planned_bytes,
    planned_seconds,
    recomputed,
)
from benchmarks.plan_steps import (
    NEMO,
    PAPER,
    VERL,
    implied,
    paper_step,
    planned_phases,
    planned_step,
)
from scope_megatron.instruments.plan.facts.figures import Efficiencies

REACHED = Efficiencies()
MEMORY, SECONDS, PHASE = 0.05, 0.15, 0.20
# rows that are further off, with what docs/planning.md says of them
MISSED = {
    "Llama-3.1-8B, 8 h100, in turn (0.3): sync",
    "Llama-3.1-70B, 64 h100, in turn (0.3): score",
    "Llama-3.1-70B, 64 h100, in turn (0.3): sync",
    "Qwen3-32B, 32 h100, in turn (0.5): all",
    "Qwen3-30B-A3B, 16 gb200, in turn (0.6): all",
    "Qwen3-235B-A22B, 256 h100, one step ahead (0.6): all",
    "Qwen3-235B-A22B, 128 gb200, in turn (0.6): all",
}


@pytest.mark.parametrize("row", GOLDEN, ids=lambda row: row.name)
def test_memory_of_pretraining_is_planned_within_5_percent(row: Iteration) -> None:
    held, most = planned_bytes(row)
    assert held == pytest.approx(row.allocated, rel=MEMORY)
    assert most == pytest.approx(row.most, rel=MEMORY)


@pytest.mark.parametrize("row", [*GOLDEN, *recomputed()], ids=lambda row: row.name)
def test_pretraining_is_planned_within_15_percent(row: Iteration) -> None:
    assert planned_seconds(row, REACHED) == pytest.approx(row.seconds, rel=SECONDS)


def test_steps_are_planned_within_15_percent_but_for_named_ones() -> None:
    missed = set()
    for step in NEMO:
        planned = planned_phases(step, REACHED)
        for phase, seconds in step.seconds.items():
            if abs(planned[phase] / seconds - 1) > SECONDS:
                missed.add(f"{step.name}: {phase}")
    assert missed == MISSED


def test_verls_update_is_planned_within_15_percent_at_the_length_its_scores_imply() -> None:
    def phases(mean: float) -> dict[str, float]:
        return planned_step(replace(VERL, mean=mean), REACHED).time.phases

    mean = implied(lambda mean: phases(mean)["score"], VERL.seconds["score"], 7000)
    assert phases(mean)["train"] == pytest.approx(VERL.seconds["train"], rel=SECONDS)
    assert phases(mean)["rollout"] < 0.7 * VERL.seconds["rollout"], "its engines had no graphs"


def test_the_papers_step_is_that_of_8_h100_within_20_percent_by_phase() -> None:
    mean = implied(lambda m: paper_step("h100", 8, m, REACHED)["student"], PAPER["student"], 12000)
    planned = paper_step("h100", 8, mean, REACHED)
    assert planned == pytest.approx(PAPER, rel=PHASE + 0.005)  # its update by 20.0%
