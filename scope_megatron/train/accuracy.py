"""Avg@k and Pass@k of an evaluation: each prompt is answered n times, each answer right or wrong.

Source: Chen et al. 2021 (arXiv 2107.03374), equation 1, for the unbiased Pass@k.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb, fsum


def avg_at_k(correct: Sequence[Sequence[bool]]) -> float:
    """Mean over prompts of the fraction of correct answers, in [0, 1].

    ``correct[i][j]`` says whether answer j of prompt i is correct. With k answers a prompt this
    is Avg@k. Every prompt counts the same, also when some have fewer answers.
    """
    _check(correct)
    return fsum(sum(map(bool, row)) / len(row) for row in correct) / len(correct)


def pass_at_k(correct: Sequence[Sequence[bool]], k: int) -> float:
    """Chance that k answers drawn without replacement hold a correct one, mean over prompts.

    For a prompt with n answers, c of them correct: 1 - C(n-c, k) / C(n, k), computed in exact
    integers up to the division. ValueError unless 1 <= k <= n for every prompt.
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
    misses = (comb(len(row) - sum(map(bool, row)), k) / comb(len(row), k) for row in correct)
    return 1.0 - fsum(misses) / len(correct)


def _check(correct: Sequence[Sequence[bool]]) -> None:
    if not correct:
        raise ValueError("no prompts to score: data.eval is empty, or evaluation.limit is 0")
    if any(not row for row in correct):
        raise ValueError("a prompt has no answers to score: evaluation.samples must be >= 1")
