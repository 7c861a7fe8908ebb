"""Efficiencies fitted to a run's metrics: with them its plan takes as long as it did."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from scope_megatron.config.errors import ConfigError
from scope_megatron.instruments.plan.estimate import RunPlan
from scope_megatron.instruments.plan.facts.figures import Efficiencies
from scope_megatron.instruments.plan.workload import metric_rows

_ROUNDS = 60
_SLOWEST, _FASTEST = 1e-9, 1e3  # of the efficiencies by hand: a CPU may stand for a GPU


@dataclass(frozen=True)
class Calibration:
    """The fitted efficiencies; seconds by phase: measured, planned before and after."""

    reached: Efficiencies
    measured: dict[str, float]
    before: dict[str, float]
    after: dict[str, float]


def calibrate(plan: RunPlan, run: Path) -> Calibration:
    """Fit to the medians of the run's later half, when nothing is warmed up any more.

    ``plan`` is of that run: its layout, its lengths, its GPUs. Raises ConfigError.
    """
    rows = metric_rows(run, "--calibrate")
    measured = _measured(rows[len(rows) // 2 :])
    if "train" not in measured:
        raise ConfigError(f"--calibrate: {run} has no time/train; give the output_dir of a run")
    reached = plan.reached
    for phase, scaled in _KNOBS.items():
        if phase in measured and measured[phase] > 0:
            reached = _fitted(plan, reached, phase, measured[phase], scaled)
    if "other" in measured:
        reached = replace(reached, step_s=max(1e-3, measured["other"]))
    reached = replace(reached, source=f"fitted to {len(rows)} steps of {run}")
    after = replace(plan, reached=reached).time.phases
    return Calibration(reached, measured, plan.time.phases, after)


def _measured(rows: list[dict[str, object]]) -> dict[str, float]:
    def middle(name: str) -> float | None:
        found = [float(row[name]) for row in rows if isinstance(row.get(name), int | float)]  # type: ignore[arg-type]
        return median(found) if found else None

    told = {p: middle(f"time/{p}") for p in ("rollout", "score", "train", "sync", "step")}
    found = {name: value for name, value in told.items() if value is not None}
    step = found.pop("step", 0.0)
    found["other"] = max(0.0, step - sum(found.values()))
    return found


Scaled = Callable[[Efficiencies, float], Efficiencies]


def _rollout(e: Efficiencies, f: float) -> Efficiencies:
    return replace(
        e,
        decode=e.decode * f,
        overhead_s=e.overhead_s / f,
        hop_s=e.hop_s / f,
        host_s=e.host_s / f,
    )


_KNOBS: dict[str, Scaled] = {
    "train": lambda e, f: replace(e, train=e.train * f),
    "score": lambda e, f: replace(e, score=e.score * f),
    "rollout": _rollout,
    "sync": lambda e, f: replace(e, sync_s=e.sync_s / f),
}


def _fitted(
    plan: RunPlan, reached: Efficiencies, phase: str, seconds: float, scaled: Scaled
) -> Efficiencies:
    """The efficiencies scaled so that the phase takes so long, as far as it can."""
    low, high = _SLOWEST, _FASTEST
    for _ in range(_ROUNDS):
        middle = (low * high) ** 0.5
        tried = replace(plan, reached=scaled(reached, middle)).time.phases[phase]
        low, high = (middle, high) if tried > seconds else (low, middle)
    return scaled(reached, high)
