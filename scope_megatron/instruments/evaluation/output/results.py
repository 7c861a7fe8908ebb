"""From graded samples to numbers: the statistics of every set and their mean, as results.json."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scope_megatron.disk import write_atomically
from scope_megatron.instruments.evaluation.samples import Outcome
from scope_megatron.rollout.statistics import (
    Values,
    interval,
    pass_with_replacement,
    pass_without_replacement,
    powers_of_two,
    resampled_means,
)
from scope_megatron.types import Answer

RESULTS = "results.json"
FORMAT = 1


@dataclass(frozen=True)
class Estimate:
    """A mean over problems, in [0, 1], and its 95% interval by bootstrap over problems."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class PassAt:
    """Pass@k: unbiased, and as the reference code estimates it."""

    k: int
    unbiased: Estimate
    with_replacement: Estimate


@dataclass(frozen=True)
class Lengths:
    """Tokens of responses. A mean over none is None."""

    mean: float
    median: float
    longest: int
    mean_correct: float | None
    mean_incorrect: float | None


@dataclass(frozen=True)
class Accuracies:
    """Avg@n and Pass@k of one set, or of the mean over sets."""

    name: str
    problems: int
    avg: Estimate
    passes: tuple[PassAt, ...]

    def pass_at(self, k: int) -> PassAt:
        return next(entry for entry in self.passes if entry.k == k)


@dataclass(frozen=True)
class SetResult:
    """A set's scores, what its responses look like, and the counts that both come from."""

    scores: Accuracies
    lengths: Lengths
    truncated: float  # share of responses that were cut off
    unjudged: int  # responses that the verifier could not judge: counted as wrong
    skipped: int  # rows of the file that could not be asked
    digests: tuple[str, ...]  # of every problem, to find it again in another evaluation
    correct: tuple[int, ...]  # of n responses, for every problem


@dataclass(frozen=True)
class Results:
    """An evaluation as judged by one verifier."""

    model: str
    samples: int  # n
    verifier: str
    sampling: dict[str, Any]
    sets: tuple[SetResult, ...]
    mean: Accuracies | None  # over sets, each counting the same; None with one set

    def write(self, directory: Path) -> Path:
        path = directory / RESULTS
        write_atomically(path, json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n")
        return path


def read_results(directory: Path) -> Results:
    """Raises ValueError when there are none in ``directory``."""
    path = directory / RESULTS
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        values.pop("format")
        sets = tuple(_read_set(entry) for entry in values.pop("sets"))
        mean = values.pop("mean")
        return Results(sets=sets, mean=_read_scores(mean) if mean else None, **values)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        raise ValueError(
            f"{directory} has no readable {RESULTS}; give the directory of a finished evaluation "
            "(evaluate prints it), or one that regrade wrote"
        ) from None


def _read_scores(values: dict[str, Any]) -> Accuracies:
    passes = tuple(
        PassAt(e["k"], Estimate(**e["unbiased"]), Estimate(**e["with_replacement"]))
        for e in values["passes"]
    )
    return Accuracies(values["name"], values["problems"], Estimate(**values["avg"]), passes)


def _read_set(values: dict[str, Any]) -> SetResult:
    scores, lengths = _read_scores(values.pop("scores")), Lengths(**values.pop("lengths"))
    digests, correct = tuple(values.pop("digests")), tuple(values.pop("correct"))
    return SetResult(scores=scores, lengths=lengths, digests=digests, correct=correct, **values)


def digest(prompt: str, answer: Answer) -> str:
    """What a problem is recognised by in another evaluation, whatever its tokenizer."""
    return hashlib.sha256(json.dumps([prompt, answer]).encode()).hexdigest()[:16]


def per_problem(correct: Sequence[int], samples: int) -> Values:
    """[problems, 1 + 2K]: the fraction correct, then Pass@k unbiased, then with replacement."""
    ks = powers_of_two(samples)
    rows = [
        [
            c / samples,
            *(pass_without_replacement(samples, c, k) for k in ks),
            *(pass_with_replacement(samples, c, k) for k in ks),
        ]
        for c in correct
    ]
    return np.array(rows)


def summarize_set(
    name: str,
    outcomes: Iterable[Outcome],
    digests: Sequence[str],
    samples: int,
    skipped: int,
) -> SetResult:
    """A set from all of its outcomes, ``samples`` of every problem; intervals are still empty."""
    outcomes = list(outcomes)
    correct = [0] * len(digests)
    for outcome in outcomes:
        correct[outcome.problem] += outcome.correct
    tokens = np.array([outcome.tokens for outcome in outcomes])
    right = np.array([outcome.correct for outcome in outcomes])
    lengths = Lengths(
        mean=float(tokens.mean()),
        median=float(np.median(tokens)),
        longest=int(tokens.max()),
        mean_correct=float(tokens[right].mean()) if right.any() else None,
        mean_incorrect=float(tokens[~right].mean()) if not right.all() else None,
    )
    means = per_problem(correct, samples).mean(axis=0)
    return SetResult(
        scores=_scores(name, len(digests), samples, means, np.array([means, means])),
        lengths=lengths,
        truncated=sum(not outcome.finished for outcome in outcomes) / len(outcomes),
        unjudged=sum(not outcome.verdict.judged for outcome in outcomes),
        skipped=skipped,
        digests=tuple(digests),
        correct=tuple(correct),
    )


def with_intervals(
    sets: Sequence[SetResult], samples: int, draws: int, seed: int
) -> tuple[tuple[SetResult, ...], Accuracies | None]:
    """The sets with their intervals, and the mean over them: problems are drawn within sets."""
    finished, all_means, all_draws = [], [], []
    for number, entry in enumerate(sets):
        values = per_problem(entry.correct, samples)
        resampled = resampled_means(values, draws, seed + number)
        all_means.append(values.mean(axis=0))
        all_draws.append(resampled)
        scores = _scores(
            entry.scores.name, len(values), samples, all_means[-1], interval(resampled)
        )
        finished.append(SetResult(**vars(entry) | {"scores": scores}))
    if len(sets) < 2:
        return tuple(finished), None
    problems = sum(len(entry.correct) for entry in sets)
    bounds = interval(np.mean(all_draws, axis=0))
    mean = _scores("mean", problems, samples, np.mean(all_means, axis=0), bounds)
    return tuple(finished), mean


def _scores(name: str, problems: int, samples: int, means: Values, bounds: Values) -> Accuracies:
    """Accuracies from the columns of :func:`per_problem`."""
    ks = powers_of_two(samples)
    estimates = [
        Estimate(float(value), float(low), float(high))
        for value, low, high in zip(means, bounds[0], bounds[1], strict=True)
    ]
    unbiased, replaced = estimates[1 : 1 + len(ks)], estimates[1 + len(ks) :]
    passes = (PassAt(*entry) for entry in zip(ks, unbiased, replaced, strict=True))
    return Accuracies(name, problems, estimates[0], tuple(passes))
