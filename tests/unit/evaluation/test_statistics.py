"""Every estimator against its definition, by counting all draws."""

from __future__ import annotations

import random
from itertools import combinations, product

import numpy as np
import pytest

from scope_megatron.rollout.statistics import (
    avg_at_k,
    interval,
    pass_at_k,
    pass_with_replacement,
    pass_without_replacement,
    powers_of_two,
    resampled_means,
)


def brute_force(row: list[bool], k: int) -> float:
    """The definition: over all ways to draw k answers, how often is one of them correct?"""
    draws = list(combinations(row, k))
    return sum(any(draw) for draw in draws) / len(draws)


@pytest.mark.parametrize("k", range(1, 8))
def test_pass_at_k_is_the_average_over_all_subsets(k: int) -> None:
    for right in range(8):
        row = [True] * right + [False] * (7 - right)
        assert pass_at_k([row], k) == pytest.approx(brute_force(row, k), abs=1e-15)


def test_every_prompt_counts_the_same() -> None:
    correct = [[True, False, False, False], [True, True], [False, False, False]]
    assert avg_at_k(correct) == pytest.approx((1 / 4 + 1 + 0) / 3)
    expected = sum(brute_force(row, 2) for row in correct) / 3
    assert pass_at_k(correct, 2) == pytest.approx(expected)
    assert pass_at_k(correct, 1) == pytest.approx(avg_at_k(correct))


def test_many_samples_do_not_overflow() -> None:
    assert pass_at_k([[False] * 5000 + [True] * 5000], 5000) == pytest.approx(1.0)
    assert pass_at_k([[False] * 4999 + [True]], 2500) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("correct", "k", "message"),
    [
        ([[True, False], [True]], 2, "evaluation.samples"),
        ([[True]], 0, "k >= 1"),
        ([], 1, "data.eval"),
        ([[]], 1, "evaluation.samples"),
    ],
)
def test_bad_requests_name_the_setting(correct: list[list[bool]], k: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pass_at_k(correct, k)


@pytest.mark.parametrize("n", [1, 4, 5])
def test_with_replacement_is_the_average_over_all_draws(n: int) -> None:
    for c, k in product(range(n + 1), range(1, n + 1)):
        draws = list(product([True] * c + [False] * (n - c), repeat=k))
        expected = sum(any(draw) for draw in draws) / len(draws)
        assert pass_with_replacement(n, c, k) == pytest.approx(expected, abs=1e-15)


def test_with_replacement_is_what_a_thousand_draws_estimate() -> None:
    """The reference code's procedure: once right in 32 counts 0.64 at k = 32, and not 1."""
    generator, answers = random.Random(42), [True] + [False] * 31
    hits = sum(any(generator.choices(answers, k=32)) for _ in range(1000)) / 1000
    expected = pass_with_replacement(32, 1, 32)
    assert expected == pytest.approx(0.6380, abs=1e-4)
    assert abs(hits - expected) < 4 * (expected * (1 - expected) / 1000) ** 0.5
    assert pass_without_replacement(32, 1, 32) == 1.0


@pytest.mark.parametrize(
    ("n", "ks"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (32, [1, 2, 4, 8, 16, 32])]
)
def test_the_ks_of_a_table(n: int, ks: list[int]) -> None:
    assert powers_of_two(n) == ks


def test_bootstrap_means_have_the_moments_of_all_resamples() -> None:
    """Against the mean and variance over all 3^3 ways to draw three problems."""
    values = np.array([[0.0], [0.25], [1.0]])
    every = np.array([np.mean(draw) for draw in product(values[:, 0], repeat=3)])
    means = resampled_means(values, 200_000, seed=3)[:, 0]
    assert means.mean() == pytest.approx(every.mean(), abs=2e-3)
    assert means.var() == pytest.approx(every.var(), rel=2e-2)
    assert set(np.round(means, 12)) == set(np.round(every, 12))


def test_bootstrap_is_seeded_whatever_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).random((7, 2))
    whole = resampled_means(values, 50, seed=1)
    monkeypatch.setattr("scope_megatron.rollout.statistics._CELLS", 7 * 8)
    assert np.array_equal(resampled_means(values, 50, seed=1), whole)
    assert not np.array_equal(resampled_means(values, 50, seed=2), whole)


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """Many sets of 200 problems from a known population; the binomial error of the share is 1.1."""
    generator, inside = np.random.default_rng(5), 0
    for trial in range(400):
        problems = generator.beta(0.5, 0.5, size=(200, 1))
        low, high = interval(resampled_means(problems, 400, seed=trial))[:, 0]
        inside += bool(low <= 0.5 <= high)
    assert 0.91 < inside / 400 < 0.98
