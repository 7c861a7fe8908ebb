"""The rows of a profile, arranged for tables and figures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.study import cells
from benchmarks.study.cells import Cell, Profile
from benchmarks.study.estimates import Estimate, Values, bootstrap, difference, values_at
from benchmarks.study.methods import METHODS
from benchmarks.study.rows import Row, RowFile
from benchmarks.study.settings import SAMPLES, TEST

BOTH = "both"  # the easy and the hard problems together
SAMPLED = "reward/mean"  # share of the rollouts that are right: at temperature 1, of all tokens
LAST = 5  # steps at the end of a run over which rollouts are counted
Runs = dict[str, dict[int, Row]]  # method -> seed -> row


@dataclass(frozen=True)
class TaskResults:
    """The finished runs of one task, at the learning rates that were chosen."""

    task: str
    rates: dict[str, float]
    runs: Runs
    tuning: list[Row]

    def correct(self, method: str, level: str) -> dict[int, Values]:
        """{seed: correct answers [problems]} of one method on a set, or on both."""
        found = {}
        for seed, row in self.runs.get(method, {}).items():
            parts = row["correct"].values() if level == BOTH else [row["correct"][level]]
            found[seed] = np.concatenate([np.array(part, float) for part in parts])
        return found

    def estimate(self, method: str, level: str, k: int) -> Estimate | None:
        """Avg@n (k = 1) or Pass@k over seeds and problems."""
        values = self._values(method, level, k)
        return bootstrap(np.stack([values[seed] for seed in sorted(values)])) if values else None

    def gain(self, ours: str, theirs: str, level: str, k: int) -> Estimate | None:
        """Difference of two methods on their common seeds."""
        return difference(self._values(ours, level, k), self._values(theirs, level, k))

    def sampled_gain(self, ours: str, theirs: str) -> Estimate | None:
        """Difference in rollouts right over the last steps; the bootstrap draws seeds and steps."""
        first, second = (self._sampled(name) for name in (ours, theirs))
        return difference(first, second)

    def _sampled(self, method: str) -> dict[int, Values]:
        found = {}
        for seed, row in self.runs.get(method, {}).items():
            values = [value for _, value in row["steps"].get(SAMPLED, [])][-LAST:]
            if len(values) == LAST:  # the base student has no steps, kd no rollouts
                found[seed] = np.array(values)
        return found

    def _values(self, method: str, level: str, k: int) -> dict[int, Values]:
        found = self.correct(method, level)
        return {seed: values_at(c[None], SAMPLES[TEST], k)[0] for seed, c in found.items()}

    def series(self, method: str, name: str) -> tuple[list[float], list[float]]:
        """Steps, and the mean over seeds of a metric."""
        points: dict[float, list[float]] = {}
        for row in self.runs.get(method, {}).values():
            for step, value in row["steps"].get(name, []):
                points.setdefault(step, []).append(value)
        steps = sorted(points)
        return steps, [sum(points[step]) / len(points[step]) for step in steps]

    def ends(self, method: str, name: str, steps: int) -> list[float]:
        """Mean over a run's last ``steps`` steps of a metric, of every seed that has it."""
        found = []
        for row in self.runs.get(method, {}).values():
            values = [value for _, value in row["steps"].get(name, [])][-steps:]
            if values:
                found.append(sum(values) / len(values))
        return found

    def mean(self, method: str, name: str, steps: int | None = None) -> float | None:
        """Mean over seeds and the first ``steps`` steps (None: all) of a metric."""
        values = self.series(method, name)[1][:steps]
        return sum(values) / len(values) if values else None


def gather(profile: Profile, task: str, rows: RowFile, work: Path) -> TaskResults:
    """The rows that belong to the present settings, data and models; others are left alone."""
    chosen = cells.chosen_rates(task, rows, work) if profile.tunes else {}
    rates = cells.committed_rates(task) | chosen
    runs: Runs = {}
    for name in profile.methods:
        mark = cells.fingerprint_of(Cell(task, name, 0, TEST), work, 0.0)
        for row in rows.select(task, TEST, [mark]):
            rate = cells.rate_of(name, rates)
            if row["method"] == name and row["lr"] == rate and row["seed"] in profile.seeds:
                runs.setdefault(name, {})[row["seed"]] = row
    marks = [
        cells.fingerprint_of(Cell(task, name, 0, cells.TUNING), work, 0.0)
        for name in METHODS
        if name in cells.TUNED
    ]
    return TaskResults(task, rates, runs, rows.select(task, cells.TUNING, marks))


def present(results: TaskResults, names: tuple[str, ...]) -> list[str]:
    """Those of ``names`` that have a finished run."""
    return [name for name in names if results.runs.get(name)]


def compared(results: TaskResults) -> list[str]:
    """What scope is compared with: the base student, and every other method."""
    return [name for name in present(results, tuple(METHODS)) if name != "scope"]
