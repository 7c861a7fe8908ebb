"""What SCOPE has to work on in a run's data: what its weights had to choose among, groups, and how
the teacher's perplexity went with what followed. Whether SCOPE gains by it these do not say: in
docs/study.md the same figures stand beside gains and losses (docs/rollouts.md has the rows).

From metrics.jsonl of a run, finished or not, and from recovery.json in its directory, where
`tools/recovery_study.py` has written one. Everything is of the student that was trained, while it
was trained; a quantity that the run did not measure is left out.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scope_megatron import outputs
from scope_megatron.instruments.report.figure import History, read_history

AHEAD = 5  # steps after a step whose accuracy is set against its teacher's perplexity
FEWEST = 10  # steps below which no correlation is told
ONE_PATH = 0.8  # share of groups of one path from which the other one is idle
IDLE = 0.98  # effective sample size from which weights choose nothing
MEASURES = (  # metric, in words
    ("perplexity/student_correct", "student's perplexity of correct responses"),
    ("perplexity/student_incorrect", "student's perplexity of incorrect responses"),
    ("perplexity/teacher_incorrect", "teacher's perplexity of incorrect responses"),
    ("weight/student_ess", "effective sample size of the student's weights (1: all equal)"),
    ("weight/teacher_ess", "effective sample size of the teacher's weights (1: all equal)"),
    ("group/all_correct", "share of groups that are all correct"),
    ("group/all_incorrect", "share of groups that are all incorrect"),
)


@dataclass(frozen=True)
class Measured:
    """One quantity: over the first and the last fifth of the steps, or one number (``last``)."""

    name: str
    label: str
    first: float | None
    last: float

    def line(self) -> str:
        """For a terminal."""
        change = f"{self.first:.3f} -> " if self.first is not None else ""
        return f"{self.label}: {change}{self.last:.3f}"


@dataclass(frozen=True)
class Fit:
    """All that was measured of a run, and one line of advice."""

    findings: tuple[Measured, ...]
    advice: str

    def lines(self) -> list[str]:
        """For a terminal; the advice last."""
        return [*(finding.line() for finding in self.findings), f"advice: {self.advice}"]


def measure_fit(run_dir: Path) -> Fit:
    """Read a run's directory. ValueError when it holds no metrics of sampled responses."""
    history = read_history(run_dir / outputs.METRICS)
    if "path/correct" not in history.names():
        raise ValueError(
            f"{run_dir}: no step with graded responses; give a run of scope, opd or grpo that has "
            "made some steps"
        )
    findings = [*_measures(history), *_correlations(history), *_recovery(run_dir)]
    return Fit(tuple(findings), _advice({f.name: f for f in findings}))


def fit_lines(run_dir: Path) -> list[str]:
    """The diagnosis as lines; none for a run that sampled no responses (kd)."""
    try:
        return measure_fit(run_dir).lines()
    except ValueError:
        return []


def _measures(history: History) -> Iterator[Measured]:
    for name, label in MEASURES:
        values = history.series(name)[1]
        if values:
            count = max(1, len(values) // 5)
            first, last = statistics.mean(values[:count]), statistics.mean(values[-count:])
            yield Measured(name, label, first if len(values) > 1 else None, last)


def _correlations(history: History) -> Iterator[Measured]:
    """The teacher's perplexity of a step's incorrect responses against what followed.

    Accuracy and perplexity both drift during training, so the gain over the step is told too.
    """
    teacher = dict(zip(*history.series("perplexity/teacher_incorrect"), strict=True))
    reward = dict(zip(*history.series("reward/mean"), strict=True))
    rows = []
    for step, perplexity in teacher.items():
        following = [reward[s] for s in range(step + 1, step + 1 + AHEAD) if s in reward]
        if len(following) == AHEAD and step in reward:
            after = statistics.mean(following)
            rows.append((perplexity, after, after - reward[step]))
    if len(rows) < FEWEST:
        return
    perplexities, afters, gains = zip(*rows, strict=True)
    for name, label, values in (
        ("rank/next_accuracy", f"accuracy of the next {AHEAD} steps", afters),
        ("rank/next_gain", f"gain of the next {AHEAD} steps over the step", gains),
    ):
        if (found := rank_correlation(perplexities, values)) is not None:
            text = f"rank correlation of the teacher's perplexity with the {label}"
            yield Measured(name, text, None, found)


def rank_correlation(a: Any, b: Any) -> float | None:
    """Spearman's coefficient; None where one side has a single value."""
    if len(set(a)) < 2 or len(set(b)) < 2:
        return None
    from scipy.stats import spearmanr

    value = float(spearmanr(a, b).statistic)
    return value if math.isfinite(value) else None


def _recovery(run_dir: Path) -> Iterator[Measured]:
    """What a recovery study of this run's models and data has found."""
    path = run_dir / outputs.RECOVERY
    if not path.is_file():
        return
    found = json.loads(path.read_text(encoding="utf-8"))
    for name, label in (
        ("spearman", "rank correlation of the teacher's perplexity with recovery"),
        ("spearman_within", "the same among responses of one prompt"),
        ("recovery", "share of incorrect responses that the teacher recovers"),
        ("student_mass", "student's mass on the teacher's top k tokens"),
        ("teacher_mass", "teacher's mass on the student's top k tokens"),
    ):
        if isinstance(found.get(name), int | float):
            yield Measured(f"recovery/{name}", label, None, float(found[name]))


def _advice(found: dict[str, Measured]) -> str:
    """One line; the strongest reason first. Of the study's rows none bears out more."""

    def last(name: str) -> float | None:
        return found[name].last if name in found else None

    for path, other, prompts in (
        ("correct", "incorrect", "easier"),
        ("incorrect", "correct", "harder"),
    ):
        if (last(f"group/all_{other}") or 0.0) > ONE_PATH:
            return (
                f"most groups have no {path} response, so SCOPE's {path} path is idle; take "
                f"{prompts} prompts"
            )
    sizes = {side: last(f"weight/{side}_ess") for side in ("student", "teacher")}
    known = {side: size for side, size in sizes.items() if size is not None}
    if not known:
        return (
            "this run has no weights; a few steps of algorithm.name=scope on the same models and "
            "data tell whether they would have work"
        )
    if idle := [f"the {side}'s" for side, size in known.items() if size > IDLE]:
        return (
            f"{' and '.join(idle)} weights choose nothing here (effective sample size of nearly "
            "1): expect no more than SCOPE's two paths give"
        )
    return (
        "the weights have responses to choose among; whether SCOPE gains by it depends on the "
        "teacher: rate it beside the student on these prompts (scope-megatron evaluate), and run "
        "algorithm.name=grpo beside it (docs/study.md)"
    )
