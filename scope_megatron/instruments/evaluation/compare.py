"""Two evaluations of the same problems: is one model better, or is it chance?"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from scope_megatron.disk import write_atomically
from scope_megatron.instruments.evaluation.output.figure import PASS_AT_K, draw_pass_at_k
from scope_megatron.instruments.evaluation.output.results import Results, SetResult
from scope_megatron.instruments.evaluation.output.table import markdown_table
from scope_megatron.instruments.evaluation.paired import Paired, compare_paired
from scope_megatron.rollout.statistics import (
    Values,
    pass_without_replacement,
    powers_of_two,
)


@dataclass(frozen=True)
class Comparison:
    """One set and metric: both values over the common problems, and the test of b - a."""

    set: str
    metric: str
    problems: int
    a: float
    b: float
    paired: Paired


@dataclass(frozen=True)
class Compared:
    """All sets that both evaluations have."""

    a: str
    b: str
    rows: tuple[Comparison, ...]
    notes: tuple[str, ...]  # what one of them alone has


def compare_results(a: Results, b: Results, draws: int, seed: int) -> Compared:
    """Problems are matched by their text and answer. Raises ValueError when none is common."""
    samples = min(a.samples, b.samples)
    ks = [k for k in powers_of_two(samples) if k > 1]
    metrics = ["Avg", *(f"Pass@{k}" for k in ks)]
    theirs = {entry.scores.name: entry for entry in b.sets}
    rows, notes = list[Comparison](), _lonely(a, b)
    for entry in a.sets:
        name = entry.scores.name
        if name not in theirs:
            continue
        values_a, values_b = _matched(entry, theirs[name], a.samples, b.samples, ks)
        if alone := len(entry.correct) + len(theirs[name].correct) - 2 * len(values_a):
            notes.append(f"{alone} problems of {name} are in one evaluation only: left out")
        for column, metric in enumerate(metrics if len(values_a) else []):
            one, other = values_a[:, column], values_b[:, column]
            paired = compare_paired(other - one, draws, seed)
            means = float(one.mean()), float(other.mean())
            rows.append(Comparison(name, metric, len(one), *means, paired))
    if not rows:
        raise ValueError(
            f"A and B have no problem in common: {_names(a)} and {_names(b)}; compare evaluations "
            "of the same --data"
        )
    return Compared(_label(a, b), _label(b, a), tuple(rows), tuple(notes))


def compared_markdown(compared: Compared) -> str:
    """The page compare.md."""
    rows = [
        [
            row.set,
            row.metric,
            f"{row.problems:,}",
            f"{100 * row.a:.1f}",
            f"{100 * row.b:.1f}",
            f"{_points(row.paired.difference)} [{_points(row.paired.low)}, "
            f"{_points(row.paired.high)}]",
            _p(row.paired.permutation_p),
            _p(row.paired.sign_p),
            f"{row.paired.better} / {row.paired.worse}",
        ]
        for row in compared.rows
    ]
    head = ["set", "metric", "problems", "A", "B", "B - A", "p permutation", "p sign"]
    parts = [
        f"A: {compared.a}  \nB: {compared.b}",
        markdown_table([*head, "B better / worse"], rows),
        "Percent and points. In brackets: 95% interval, paired bootstrap over problems. "
        "Permutation: A and B swapped at random within problems. Sign: exact sign test on the "
        "problems that differ. Two-sided; not corrected for the number of rows.",
        *compared.notes,
    ]
    return "\n\n".join(parts) + "\n"


def _matched(
    a: SetResult, b: SetResult, samples_a: int, samples_b: int, ks: list[int]
) -> tuple[Values, Values]:
    """Avg and Pass@k of the problems that both have, [problems, 1 + len(ks)] each.

    A problem that stands twice in a set is matched twice, in order.
    """
    places: dict[str, list[int]] = {}
    for place, digest in enumerate(b.digests):
        places.setdefault(digest, []).append(place)
    pairs = [(i, places[d].pop(0)) for i, d in enumerate(a.digests) if places.get(d)]
    mine = [a.correct[i] for i, _ in pairs]
    other = [b.correct[j] for _, j in pairs]
    return _columns(mine, samples_a, ks), _columns(other, samples_b, ks)


def _columns(correct: list[int], samples: int, ks: list[int]) -> Values:
    """Avg, then the unbiased Pass@k at ``ks``."""
    if not correct:
        return np.empty((0, 1 + len(ks)))
    rows = [[c / samples, *(pass_without_replacement(samples, c, k) for k in ks)] for c in correct]
    return np.array(rows)


def _lonely(a: Results, b: Results) -> list[str]:
    names = [{entry.scores.name for entry in results.sets} for results in (a, b)]
    only = sorted(names[0] ^ names[1])
    return [f"Sets of one evaluation only: {', '.join(only)}"] if only else []


def _names(results: Results) -> str:
    return ", ".join(entry.scores.name for entry in results.sets)


def _label(results: Results, other: Results) -> str:
    """The model, with what else tells the two apart."""
    if results.verifier != other.verifier:
        return f"{results.model} (verifier {results.verifier})"
    return results.model


def _points(value: float) -> str:
    points = round(100 * value, 1) + 0.0  # no -0.0
    return f"{points:+.1f}"


def _p(value: float) -> str:
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}"


def write_comparison(compared: Compared, a: Results, b: Results, out: Path) -> None:
    """compare.md, compare.json and pass_at_k.png in ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "compare.md", compared_markdown(compared))
    write_atomically(out / "compare.json", json.dumps(asdict(compared), indent=1) + "\n")
    draw_pass_at_k([(f"A: {compared.a}", a), (f"B: {compared.b}", b)], out / PASS_AT_K)
