"""Tests of paired differences: the same problems, answered by two models.

All are two-sided and take one difference per problem (or per problem and metric).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import comb

import numpy as np

from scope_megatron.rollout.statistics import Values, interval, resampled_means

EXACT = 16  # up to so many problems that differ, every one of the 2^m assignments is counted
_BLOCK = 4_000_000  # signs held at once


@dataclass(frozen=True)
class Paired:
    """Difference b - a of one metric: mean, interval, tests."""

    difference: float  # mean over problems
    low: float  # of its 95% interval, bootstrap over problems
    high: float
    permutation_p: float
    sign_p: float
    better: int  # problems with a positive difference
    worse: int


def compare_paired(differences: Values, draws: int, seed: int) -> Paired:
    """``differences`` [problems]: value of b minus value of a."""
    low, high = interval(resampled_means(differences[:, None], draws, seed))[:, 0]
    better, worse = int((differences > 0).sum()), int((differences < 0).sum())
    return Paired(
        difference=float(differences.mean()),
        low=float(low),
        high=float(high),
        permutation_p=permutation_test(differences, draws, seed),
        sign_p=sign_test(better, worse),
        better=better,
        worse=worse,
    )


def sign_test(better: int, worse: int) -> float:
    """P-value of the exact sign test; problems without a difference say nothing."""
    total = better + worse
    tail = sum(comb(total, i) for i in range(min(better, worse) + 1))
    return float(min(1.0, 2 * tail / 2**total))


def permutation_test(differences: Values, draws: int, seed: int) -> float:
    """P-value of the mean when a and b may be swapped at every problem alike.

    Exact for up to ``EXACT`` problems that differ; otherwise (1 + extreme) / (1 + draws) over
    seeded random swaps, which is never 0.
    """
    values = differences[differences != 0]
    observed = abs(values.sum()) * (1 - 1e-12)  # sums in another order differ in the last bits
    if len(values) <= EXACT:
        signs = 1 - 2 * (np.arange(2 ** len(values))[:, None] >> np.arange(len(values)) & 1)
        return float((np.abs(signs @ values) >= observed).mean())
    generator = np.random.default_rng([seed, 1])
    extreme, block = 0, max(1, _BLOCK // len(values))
    for start in range(0, draws, block):
        shape = (min(block, draws - start), len(values))
        signs = 1 - 2 * generator.integers(0, 2, shape, dtype=np.int8)
        extreme += int((np.abs(signs @ values) >= observed).sum())
    return (1 + extreme) / (1 + draws)
