"""Avg@k and Pass@k over seeds and problems, and paired bootstrap intervals of differences.

A method's answers to a set are a matrix [seeds, problems] of correct counts among ``n`` samples.
Two methods are compared on the seeds that both have: the same prompts in the same order, the same
problems. The bootstrap draws seeds and, independently, problems with replacement, so the interval
says how far other seeds and another choice of problems might move the difference.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scope_megatron.rollout.statistics import interval, pass_without_replacement

Values = NDArray[np.float64]
DRAWS, SEED = 10_000, 0


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95% interval, as shares (not percent)."""

    value: float
    low: float
    high: float
    seeds: int


def values_at(correct: Values, samples: int, k: int) -> Values:
    """Unbiased Pass@k of every cell of ``correct`` [seeds, problems]; k = 1 is Avg@n."""
    table = np.array([pass_without_replacement(samples, c, k) for c in range(samples + 1)])
    found: Values = table[correct.astype(int)]
    return found


def bootstrap(values: Values, draws: int = DRAWS, seed: int = SEED) -> Estimate:
    """Mean of ``values`` [seeds, problems] with both axes resampled."""
    seeds, problems = values.shape
    rng = np.random.default_rng(seed)
    by_seed = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=draws) / seeds
    by_problem = rng.multinomial(problems, np.full(problems, 1 / problems), size=draws) / problems
    means = np.einsum("ds,sp,dp->d", by_seed, values, by_problem, optimize=True)
    low, high = interval(means[:, None])[:, 0]
    return Estimate(float(values.mean()), float(low), float(high), seeds)


def difference(ours: dict[int, Values], theirs: dict[int, Values]) -> Estimate | None:
    """``ours`` - ``theirs`` ({seed: [problems]}) on their common seeds; None without any."""
    common = sorted(ours.keys() & theirs.keys())
    if not common:
        return None
    return bootstrap(np.stack([ours[seed] - theirs[seed] for seed in common]))
