"""Advice on a run's health: rules over its metrics, each with the source that it rests on.

A rule on SCOPE's weights or its teacher is here only if the runs of docs/study.md bear it out; the
table of docs/rollouts.md has their rows, and what was dropped since they do not.

Each rule looks at the last :data:`WINDOW` steps (some compare them with the first). A rule that
lacks its metric, or the steps to judge by, says nothing.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

WINDOW = 20  # steps that are judged together
ENOUGH = 5  # steps below which no rule speaks

Series = Callable[[str], tuple[Any, Any]]  # name -> steps, values: sequences of one length

SCOPE = "SCOPE, arXiv 2604.10688"
LOST = 20  # times as high a perplexity under the teacher as under the student, 3 nats a token


@dataclass(frozen=True)
class Advice:
    """What is wrong, what to do, and who says so. ``level``: warning or note."""

    rule: str
    level: str
    text: str
    source: str

    def line(self) -> str:
        """For a terminal."""
        return f"{self.level}: {self.text} [{self.source}]"


def advice(series: Series) -> list[Advice]:
    """What there is to say, warnings first."""
    told = [item for rule in RULES for item in rule(series)]
    return sorted(told, key=lambda item: item.level != "warning")


def _last(series: Series, name: str) -> list[float]:
    """The last steps' values; empty when there are too few."""
    values = [float(value) for value in series(name)[1][-WINDOW:]]
    return values if len(values) >= ENOUGH else []


def _halves(series: Series, name: str) -> tuple[float, float] | None:
    """Means of the first and the last steps, where both are there and do not overlap."""
    values = series(name)[1]
    count = min(WINDOW, len(values) // 2)
    if count < ENOUGH:
        return None
    first, last = values[:count], values[-count:]
    return float(sum(first) / count), float(sum(last) / count)


def _weights(series: Series) -> Iterator[Advice]:
    """The effective sample size of a path's weights: (sum w)^2 / (n sum w^2), 1 when equal."""
    for side, path in (("student", "correct"), ("teacher", "incorrect")):
        values = _last(series, f"weight/{side}_ess")
        if not values:
            continue
        share = statistics.mean(values)
        if share > 0.995:
            yield Advice(
                "weights_equal",
                "note",
                f"the {side}'s weights of {path} responses are nearly equal (effective sample "
                f"size {100 * share:.1f} % of the group): they choose nothing, SCOPE is its two "
                "paths alone",
                f"{SCOPE}, equations 4 and 5; Kong 1992 (effective sample size)",
            )


def _paths(series: Series) -> Iterator[Advice]:
    correct, incorrect = _last(series, "path/correct"), _last(series, "path/incorrect")
    masked = _last(series, "path/masked")
    routed = sum(correct) + sum(incorrect)
    grouped = bool(_last(series, "group/all_correct"))  # single responses have no path to fill
    if grouped and correct and incorrect and routed:
        share = sum(correct) / routed
        if share < 0.02 or share > 0.98:
            path, fix = ("correct", "easier") if share < 0.02 else ("incorrect", "harder")
            yield Advice(
                "path_empty",
                "warning",
                f"{100 * min(share, 1 - share):.1f} % of the responses are on the {path} path: one "
                f"half of the objective is idle; use {fix} problems, or check the verifier",
                f"{SCOPE}, section 3.1; DAPO, arXiv 2503.14476, section 3.2",
            )
    if masked and sum(masked) > 0.1 * (routed + sum(masked)):
        yield Advice(
            "masked",
            "warning",
            f"{100 * sum(masked) / (routed + sum(masked)):.0f} % of the responses are masked: "
            "nobody could judge or score them; look at their verdicts",
            "this project's rule: a response without a verdict trains nothing",
        )


def _lengths(series: Series) -> Iterator[Advice]:
    halves, cut = (
        _halves(series, "rollout/response_tokens_mean"),
        _last(series, "rollout/truncated"),
    )
    total = [sum(_last(series, f"path/{path}")) for path in ("correct", "incorrect", "masked")]
    share = sum(cut) / sum(total) if cut and sum(total) else 0.0
    if share > 0.1 and halves and halves[1] > 1.3 * halves[0]:
        yield Advice(
            "length_inflation",
            "warning",
            f"responses grow ({halves[0]:.0f} to {halves[1]:.0f} tokens) and {100 * share:.0f} % "
            "are cut off: length inflation; raise rollout.max_response_tokens, or set "
            "objective.truncated=mask",
            "arXiv 2604.08527 (length inflation); DAPO, arXiv 2503.14476, section 3.4",
        )
    elif share > 0.25:
        yield Advice(
            "truncated",
            "note",
            f"{100 * share:.0f} % of the responses are cut off; raise rollout.max_response_tokens",
            "DAPO, arXiv 2503.14476, section 3.4 (noise of truncated samples)",
        )


def _teacher(series: Series) -> Iterator[Advice]:
    teacher = _last(series, "perplexity/teacher_incorrect")
    student = _last(series, "perplexity/student_incorrect")
    if not teacher or not student:
        return
    theirs, ours = statistics.median(teacher), statistics.median(student)
    if theirs > LOST * ours:
        yield Advice(
            "teacher_lost",
            "warning",
            f"the teacher finds the student's incorrect responses next to impossible (perplexity "
            f"{theirs:.0f}, the student's {ours:.0f}): such log-ratios rule the update; check that "
            "both share chat template and tokenizer, bound the divergence (objective.kl=jsd), or "
            "compare with no teacher (objective.incorrect=constant)",
            "docs/study.md, walk: jsd is 3.9 points ahead of the log-ratio, a constant 5.5",
        )
    elif abs(theirs - ours) < 0.01 * ours:
        yield Advice(
            "teacher_agrees",
            "note",
            f"teacher and student find incorrect responses equally probable (perplexity "
            f"{theirs:.3f} and {ours:.3f}): little is left to distil",
            f"{SCOPE}, equation 3",
        )


def _mismatch(series: Series) -> Iterator[Advice]:
    halves = _halves(series, "mismatch/mean_abs_prob")
    if halves and halves[1] > 2 * halves[0] and halves[1] > 0.005:
        yield Advice(
            "mismatch_rises",
            "warning",
            f"engine and trainer drift apart: their probabilities differ by {halves[1]:.3g} on "
            f"average, {halves[0]:.3g} at the start; set objective.tis_clip=2, or "
            "model.dtype=float32",
            "Yao et al. 2025, Your Efficient RL Framework Secretly Brings You Off-Policy RL",
        )


def _gradient(series: Series) -> Iterator[Advice]:
    norms = _last(series, "grad_norm")
    if norms and max(norms) > 5 * statistics.median(norms) > 0:
        yield Advice(
            "grad_spike",
            "warning",
            f"the gradient norm had a spike: {max(norms):.3g} against a median of "
            f"{statistics.median(norms):.3g} in the last {len(norms)} steps; look at that step's "
            "heaviest responses, lower optimizer.lr or optimizer.clip_grad",
            "PaLM, arXiv 2204.02311, section 5.1 (spikes); Pascanu 2013, arXiv 1211.5063",
        )
    skipped = _last(series, "update/skipped") or list(series("update/skipped")[1])
    if skipped:
        yield Advice(
            "skipped",
            "warning",
            f"{len(series('update/skipped')[1])} updates were skipped: their loss was not finite; "
            "output_dir/nonfinite has the responses",
            "faults.nonfinite_updates of this project",
        )


def _entropy(series: Series) -> Iterator[Advice]:
    halves = _halves(series, "entropy/student_incorrect")
    reward = _halves(series, "reward/mean")
    if halves and halves[1] < 0.2 * halves[0] and reward and reward[1] - reward[0] < 0.02:
        yield Advice(
            "entropy_collapse",
            "warning",
            f"the student's entropy fell from {halves[0]:.3g} to {halves[1]:.3g} nats without a "
            "higher reward: it no longer explores; raise rollout.temperature or lower optimizer.lr",
            "The Entropy Mechanism of RL for Reasoning Models, arXiv 2505.22617",
        )


def _balance(series: Series) -> Iterator[Advice]:
    waits, steps = _last(series, "time/wait"), _last(series, "time/train")
    if waits and steps and sum(waits) > 0.3 * sum(steps):
        yield Advice(
            "waiting",
            "note",
            f"replicas wait for each other for {100 * sum(waits) / sum(steps):.0f} % of the "
            "training phase; raise rollout.prompts_per_step or lower parallel.data",
            "this project's balance/imbalance and time/wait",
        )


RULES = (_weights, _paths, _lengths, _teacher, _mismatch, _gradient, _entropy, _balance)


class HealthWatch:
    """Advice during a run: each rule is told once, when it first speaks."""

    def __init__(self, every: int = 10) -> None:
        self._every = every
        self._steps: dict[str, list[float]] = {}
        self._values: dict[str, list[float]] = {}
        self._told: set[str] = set()

    def add(self, step: int, metrics: Mapping[str, float]) -> list[Advice]:
        """Take a step's metrics; what there is to say for the first time, every few steps."""
        for name, value in metrics.items():
            if math.isfinite(value):
                self._steps.setdefault(name, []).append(float(step))
                self._values.setdefault(name, []).append(float(value))
        if step % self._every:
            return []
        found = [item for item in self.now() if item.rule not in self._told]
        self._told |= {item.rule for item in found}
        return found

    def now(self) -> list[Advice]:
        """All that there is to say of the steps so far."""
        return advice(lambda name: (self._steps.get(name, []), self._values.get(name, [])))
