"""Markdown of table 1, of SCOPE against the others, of what the weights had to do, of the rates."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.study.estimates import Estimate
from benchmarks.study.methods import BASE, GRPO, METHODS, RATES, TUNED
from benchmarks.study.results import BOTH, LAST, SAMPLED, TaskResults, compared, present
from benchmarks.study.settings import SAMPLES, TEST, TUNING
from scope_megatron.instruments.evaluation.output.table import markdown_table
from tools.tasks.family import EASY, HARD

LEVELS = (EASY, HARD, BOTH)
KS = (1, SAMPLES[TEST])
SAMPLED_HEAD = f"rollouts, last {LAST} steps,"


def accuracy_table(results: TaskResults) -> str:
    """Avg@n and Pass@n of every method on easy, hard and both."""
    n = SAMPLES[TEST]
    head = ["method", "seeds", "lr"]
    head += [f"{what} {level}" for level in LEVELS for what in (f"Avg@{n}", f"Pass@{n}")]
    rows = []
    for name in present(results, tuple(METHODS)):
        method = METHODS[name]
        rate = results.rates.get(method.tuned_as)
        row = [method.label, str(len(results.runs[name])), f"{rate:g}" if rate else ""]
        row += [_percent(results.estimate(name, level, k)) for level in LEVELS for k in KS]
        rows.append(row)
    return markdown_table(head, rows)


def difference_table(results: TaskResults) -> str:
    """SCOPE minus every other method, in points."""
    n = SAMPLES[TEST]
    head = ["SCOPE minus", "seeds"]
    head += [f"{what} {level}" for level in LEVELS for what in (f"Avg@{n}", f"Pass@{n}")]
    rows = []
    for name in compared(results):
        gains = [results.gain("scope", name, level, k) for level in LEVELS for k in KS]
        if gains[0] is not None:
            row = [METHODS[name].label, str(gains[0].seeds)]
            rows.append(row + [_points(gain) for gain in gains])
    return markdown_table(head, rows) if rows else "SCOPE has no finished run here yet."


def summary_table(found: Sequence[TaskResults]) -> str:
    """SCOPE minus every other method in Avg@n and Pass@n on easy and hard together, and in rollouts
    right, by task."""
    n = SAMPLES[TEST]
    rows = []
    for name in METHODS:
        shown = [results if name in compared(results) else None for results in found]
        gains = [r and r.gain("scope", name, BOTH, k) for k in KS for r in shown]
        gains += [r and r.sampled_gain("scope", name) for r in shown]
        if any(gains):
            rows.append([METHODS[name].label, *map(_points, gains)])
    kinds = (f"Avg@{n}", f"Pass@{n}", SAMPLED_HEAD)
    head = ["SCOPE minus", *(f"{kind} {results.task}" for kind in kinds for results in found)]
    return markdown_table(head, rows) if rows else ""


def rewarded_table(found: Sequence[TaskResults]) -> str:
    """Every method minus GRPO in Avg@n and in rollouts right, by task, where GRPO has runs."""
    rows = []
    for name in METHODS:
        if name != GRPO.name:
            gains = [results.gain(name, GRPO.name, BOTH, 1) for results in found]
            gains += [results.sampled_gain(name, GRPO.name) for results in found]
            if any(gains):
                rows.append([METHODS[name].label, *map(_points, gains)])
    kinds = (f"Avg@{SAMPLES[TEST]}", SAMPLED_HEAD)
    head = ["minus GRPO", *(f"{kind} {results.task}" for kind in kinds for results in found)]
    return markdown_table(head, rows) if rows else ""


def spread_table(results: TaskResults, steps: int = 5) -> str:
    """What the weights had to work on, in the first steps and over all."""
    names = {
        "perplexity/student_correct": "student on correct",
        "perplexity/student_incorrect": "student on incorrect",
        "perplexity/teacher_incorrect": "teacher on incorrect",
        "weight/student_ess": "student weights' sample size, of 1",
        "weight/teacher_ess": "teacher weights' sample size, of 1",
    }
    rows = []
    for name, label in names.items():
        first, whole = (results.mean("scope", name, count) for count in (steps, None))
        if first is not None and whole is not None:
            rows.append([label, f"{first:.3f}", f"{whole:.3f}"])
    head = ["SCOPE's runs", f"first {steps} steps", "all steps"]
    return markdown_table(head, rows) if rows else ""


def endings_table(results: TaskResults, steps: int = LAST) -> str:
    """What the students sample at the end: how diverse, how often right; by method."""
    names = {
        "entropy/student_correct": "entropy on correct, nats",
        "entropy/student_incorrect": "on incorrect",
        "perplexity/student_correct": "student's perplexity of correct",
        SAMPLED: "rollouts right",
    }
    rows = []
    for name in present(results, tuple(METHODS)):
        ends = [results.ends(name, metric, steps) for metric in names]
        if name != BASE.name and any(ends):
            rows.append([METHODS[name].label, *map(_ranged, ends)])
    head = [f"last {steps} steps, mean (least to most of the seeds)", *names.values()]
    return markdown_table(head, rows) if rows else ""


def _ranged(values: Sequence[float]) -> str:
    if not values:
        return ""
    return f"{sum(values) / len(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def rates_table(results: TaskResults) -> str:
    """Avg on the tuning problems at every rate that was tried."""
    tried = {(row["method"], row["lr"]): row for row in results.tuning}
    rows = []
    for name in TUNED:
        if any(method == name for method, _ in tried):
            shown = [_tuned(tried.get((name, rate))) for rate in RATES]
            chosen = results.rates.get(name)
            rows.append([METHODS[name].label, *shown, f"{chosen:g}" if chosen else ""])
    head = ["method", *(f"lr {rate:g}" for rate in RATES), "chosen"]
    return markdown_table(head, rows) if rows else ""


def _tuned(row: dict[str, object] | None) -> str:
    if row is None:
        return ""
    counts = row["correct"][TUNING]  # type: ignore[index]
    return f"{100 * sum(counts) / len(counts) / SAMPLES[TUNING]:.1f}"


def _percent(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    value, low, high = (100 * v for v in (estimate.value, estimate.low, estimate.high))
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def _points(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    value, low, high = (
        round(100 * v, 1) + 0.0 for v in (estimate.value, estimate.low, estimate.high)
    )
    sure = "**" if low > 0 or high < 0 else ""
    return f"{sure}{value:+.1f}{sure} [{low:+.1f}, {high:+.1f}]"
