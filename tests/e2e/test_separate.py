"""Engines on ranks of their own give the losses of colocated ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e import golden_losses
from tests.e2e.golden_losses import COLUMNS
from tests.support.traces import require_trace

# (training layout, sampling ranks, tensor size of an engine)
PLACEMENTS = [("tensor2", 1, 1), ("pipeline2", 2, 1), ("data2", 2, 2), ("tensor2", 3, 1)]


def compare(layout: str, ranks: int, tensor: int, steps: int, output: Path, *more: str) -> None:
    """With the losses that are written down for engines on the training ranks."""
    written_on, golden = golden_losses.read()
    rows = golden_losses.run(
        layout,
        output,
        *("rollout.placement=separate", f"rollout.ranks={ranks}"),
        *(f"rollout.engine.tensor={tensor}", f"train.steps={steps}"),
        *more,
    )
    assert len(rows) == steps
    if golden_losses.processor() != written_on:
        rows, golden[layout] = rows[:1], golden[layout][:1]  # the shipped weights' responses
    for step, (row, expected) in enumerate(zip(rows, golden[layout][:steps], strict=False), 1):
        for name in COLUMNS:
            scale = max(1.0, abs(expected[name]))
            # a gradient's norm drifts over ten updates with Adam, as between layouts
            limit = 1e-5 if name == "grad_norm" else 1e-6
            assert abs(row[name] - expected[name]) <= limit * scale, (step, name, row, expected)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_losses_are_those_of_colocated_engines(tmp_path: Path) -> None:
    compare("tensor2", 1, 1, 3, tmp_path / "run", "logging.trace.steps=[1,3]")
    require_trace(tmp_path / "run", ranks=2, steps=3, samplers=1)


@pytest.mark.study
@pytest.mark.timeout(400)
@pytest.mark.parametrize(("layout", "ranks", "tensor"), PLACEMENTS)
def test_placements(layout: str, ranks: int, tensor: int, tmp_path: Path) -> None:
    compare(layout, ranks, tensor, golden_losses.STEPS, tmp_path / "run")
