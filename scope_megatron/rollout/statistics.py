"""Avg@k and Pass@k of an evaluation, two estimators of Pass@k, and bootstrap intervals.

Each problem is answered n times, each answer right or wrong. Sources: Chen et al. 2021
(arXiv 2107.03374), equation 1, for the unbiased Pass@k; the published SCOPE code draws k of the n
answers with replacement instead, which this file gives as its exact expectation.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb, fsum

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

_CELLS = 4_000_000  # numbers of a block of bootstrap draws held at once


def avg_at_k(correct: Sequence[Sequence[bool]]) -> float:
    """Mean over prompts of the fraction of correct answers, in [0, 1].

    ``correct[i][j]`` says whether answer j of prompt i is correct. With k answers a prompt this
    is Avg@k. Every prompt counts the same, also when some have fewer answers.
    """
    _check(correct)
    return fsum(sum(map(bool, row)) / len(row) for row in correct) / len(correct)


def pass_at_k(correct: Sequence[Sequence[bool]], k: int) -> float:
    """Chance that k answers drawn without replacement hold a correct one, mean over prompts.

    ValueError unless 1 <= k <= n for every prompt.
    """
    _check(correct)
    if k < 1:
        raise ValueError(f"pass@k needs k >= 1, got k={k}")
    fewest = min(len(row) for row in correct)
    if k > fewest:
        raise ValueError(
            f"pass@{k} needs at least {k} answers per prompt, a prompt has {fewest}: "
            "raise evaluation.samples or lower k"
        )
    hits = (pass_without_replacement(len(row), sum(map(bool, row)), k) for row in correct)
    return fsum(hits) / len(correct)


def pass_without_replacement(n: int, c: int, k: int) -> float:
    """Unbiased Pass@k of one problem with c of n answers correct: 1 - C(n-c, k) / C(n, k).

    Exact integers up to the division; 1 <= k <= n.
    """
    total = comb(n, k)
    return (total - comb(n - c, k)) / total


def pass_with_replacement(n: int, c: int, k: int) -> float:
    """Expectation of the reference code's Pass@k of one problem: 1 - (1 - c/n)^k.

    That code draws k of the n answers with replacement, 1,000 times, and counts the draws that
    hold a correct one. Its k = n is below the unbiased one: a problem solved once in 32 answers
    counts 0.64 instead of 1.
    """
    return 1.0 - (1.0 - c / n) ** k


def powers_of_two(n: int) -> list[int]:
    """The k of a table: 1, 2, 4, ... up to n, and n itself."""
    return [*(2**i for i in range(n.bit_length()) if 2**i < n), n]


def resampled_means(values: Values, draws: int, seed: int) -> Values:
    """Means over problems resampled with replacement, [draws, M], of ``values`` [problems, M].

    The same seed and number of problems give the same resampled problems.
    """
    problems, columns = values.shape
    generator = np.random.default_rng(seed)
    means = np.empty((draws, columns))
    block = max(1, _CELLS // problems)
    share = np.full(problems, 1.0 / problems)
    for start in range(0, draws, block):
        stop = min(start + block, draws)
        counts = generator.multinomial(problems, share, size=stop - start)
        means[start:stop] = counts @ values / problems
    return means


def interval(means: Values, level: float = 0.95) -> Values:
    """Percentile interval of each column, [2, M]: the lower ends, then the upper ends."""
    tail = 100 * (1 - level) / 2
    ends: Values = np.percentile(means, [tail, 100 - tail], axis=0)
    return ends


def _check(correct: Sequence[Sequence[bool]]) -> None:
    if not correct:
        raise ValueError("no prompts to score: data.eval is empty, or evaluation.limit is 0")
    if any(not row for row in correct):
        raise ValueError("a prompt has no answers to score: evaluation.samples must be >= 1")
