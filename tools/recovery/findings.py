"""What the attempts say: recovery by quartile of the teacher's perplexity, and whether it falls.

Intervals: bootstrap over problems, since responses of one problem are alike. Trend: Spearman's rank
correlation of perplexity with the share of completions recovered, with a permutation test; and the
Cochran-Armitage test of recovered responses (at least one completion) over the quartiles. The
weights of equation 5 compare responses of one prompt, so the correlation among these is told too.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, permutation_test, rankdata

from scope_megatron.rollout.statistics import interval
from tools.recovery.completion import CUTS, Attempt

DRAWS, SEED = 10_000, 0
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Quartile:
    """Recovery of a quarter of the responses at one cut (None: mean over the cuts)."""

    quartile: int  # 1: the lowest perplexities
    cut: float | None
    low_perplexity: float
    high_perplexity: float
    responses: int
    recovery: float
    low: float  # of its 95 % interval
    high: float


@dataclass(frozen=True)
class Trend:
    """Does recovery fall with perplexity? Negative: it does."""

    cut: float | None
    spearman: float
    spearman_p: float  # two-sided, permutations
    spearman_within: float | None  # among responses of one problem
    within_p: float | None
    armitage_z: float
    armitage_p: float


def summarize_recovery(attempts: Sequence[Attempt]) -> dict[str, Any]:
    """Quartiles and trends, per cut and over all; ValueError with fewer than eight responses."""
    perplexity, problem, shares = _responses(attempts)
    if len(perplexity) < 8:
        raise ValueError(
            f"recovery: only {len(perplexity)} incorrect responses; raise --prompts or --samples"
        )
    quartile = np.minimum(4 * (rankdata(perplexity, "ordinal") - 1) // len(perplexity), 3)
    quartiles, trends = list[Quartile](), list[Trend]()
    for column, cut in enumerate([*CUTS, None]):
        share = shares.mean(axis=1) if cut is None else shares[:, column]
        for number in range(4):
            quartiles.append(_quartile(number, cut, quartile, perplexity, problem, share))
        trends.append(_trend(cut, quartile, perplexity, problem, share))
    whole = trends[-1]
    return {
        "responses": len(perplexity),
        "problems": len(set(problem.tolist())),
        "recovery": float(shares.mean()),
        "spearman": whole.spearman,
        "spearman_p": whole.spearman_p,
        "spearman_within": whole.spearman_within,
        "within_p": whole.within_p,
        "quartiles": [asdict(one) for one in quartiles],
        "trends": [asdict(one) for one in trends],
    }


def _responses(attempts: Sequence[Attempt]) -> tuple[Array, NDArray[np.int64], Array]:
    """Perplexity [R], problem [R], share recovered [R, cuts] of every response."""
    found: dict[tuple[int, int], dict[float, Attempt]] = defaultdict(dict)
    for one in attempts:
        found[one.problem, one.sample][one.cut] = one
    rows = [found[key] for key in sorted(found) if len(found[key]) == len(CUTS)]
    return (
        np.array([row[CUTS[0]].teacher_perplexity for row in rows]),
        np.array([row[CUTS[0]].problem for row in rows], dtype=np.int64),
        np.array([[row[cut].share for cut in CUTS] for row in rows]).reshape(-1, len(CUTS)),
    )


def _quartile(
    number: int,
    cut: float | None,
    quartile: Array,
    perplexity: Array,
    problem: NDArray[np.int64],
    share: Array,
) -> Quartile:
    inside = quartile == number
    low, high = _interval(share[inside], problem[inside])
    return Quartile(
        quartile=number + 1,
        cut=cut,
        low_perplexity=float(perplexity[inside].min()),
        high_perplexity=float(perplexity[inside].max()),
        responses=int(inside.sum()),
        recovery=float(share[inside].mean()),
        low=low,
        high=high,
    )


def _interval(share: Array, problem: NDArray[np.int64]) -> tuple[float, float]:
    """95 % bootstrap interval of the mean over responses; problems are drawn with replacement."""
    _, member = np.unique(problem, return_inverse=True)
    sums, counts = np.bincount(member, share), np.bincount(member)
    generator = np.random.default_rng(SEED)
    drawn = generator.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=DRAWS)
    ends = interval(((drawn @ sums) / (drawn @ counts))[:, None])[:, 0]
    return float(ends[0]), float(ends[1])


def _trend(
    cut: float | None,
    quartile: Array,
    perplexity: Array,
    problem: NDArray[np.int64],
    share: Array,
) -> Trend:
    spearman, spearman_p = _permuted(rankdata(perplexity), rankdata(share))
    z, p = armitage(quartile, share > 0)
    ours, theirs = (_within(values, problem) for values in (perplexity, share))
    kept = np.array([np.sum(problem == one) > 1 for one in problem])
    within, within_p = _permuted(ours[kept], theirs[kept], problem[kept])
    return Trend(
        cut=cut,
        spearman=spearman or 0.0,
        spearman_p=1.0 if spearman_p is None else spearman_p,
        spearman_within=within,
        within_p=within_p,
        armitage_z=z,
        armitage_p=p,
    )


def _within(values: Array, problem: NDArray[np.int64]) -> Array:
    """Ranks inside each problem, their problem's mean taken off."""
    result = np.zeros(len(values))
    for one in np.unique(problem):
        inside = problem == one
        ranks = rankdata(values[inside])
        result[inside] = ranks - ranks.mean()
    return result


def _permuted(
    a: Array, b: Array, blocks: NDArray[np.int64] | None = None
) -> tuple[float | None, float | None]:
    """Pearson's coefficient of ranks and its two-sided p by permutations of ``a``, inside
    ``blocks`` where they are given; None where one side does not vary."""
    if len(a) < 3 or a.std() == 0 or b.std() == 0:
        return None, None
    observed = float(np.corrcoef(a, b)[0, 1])
    if blocks is None:
        result = permutation_test(
            (a,),
            lambda x: np.corrcoef(x, b)[0, 1],
            permutation_type="pairings",
            n_resamples=2000,
            rng=np.random.default_rng(SEED),
        )
        return observed, float(result.pvalue)
    generator, extreme = np.random.default_rng(SEED), 0
    members = [np.flatnonzero(blocks == one) for one in np.unique(blocks)]
    for _ in range(2000):
        shuffled = a.copy()
        for inside in members:
            shuffled[inside] = generator.permutation(a[inside])
        extreme += abs(np.corrcoef(shuffled, b)[0, 1]) >= abs(observed) * (1 - 1e-12)
    return observed, (1 + extreme) / 2001


def armitage(dose: Array, event: NDArray[np.bool_]) -> tuple[float, float]:
    """Cochran-Armitage test for a trend of ``event`` over ``dose``: z and two-sided p."""
    n, rate = len(event), float(event.mean())
    deviation = dose - dose.mean()
    variance = rate * (1 - rate) * float((deviation**2).sum())
    if n == 0 or variance == 0:
        return 0.0, 1.0
    z = float((deviation * event).sum()) / math.sqrt(variance)
    return z, float(2 * norm.sf(abs(z)))
