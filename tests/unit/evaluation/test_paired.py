"""Paired tests against counting every assignment, and against chance."""

from __future__ import annotations

from itertools import product
from math import comb

import numpy as np
import pytest

from scope_megatron.instruments.evaluation.paired import compare_paired, permutation_test, sign_test


@pytest.mark.parametrize("better", range(6))
def test_sign_test_counts_all_outcomes(better: int) -> None:
    outcomes = list(product([0, 1], repeat=5))
    as_far = [o for o in outcomes if abs(sum(o) - 2.5) >= abs(better - 2.5)]
    assert sign_test(better, 5 - better) == pytest.approx(len(as_far) / len(outcomes))


def test_nothing_differs() -> None:
    same = compare_paired(np.zeros(9), draws=100, seed=0)
    assert (same.difference, same.low, same.high) == (0.0, 0.0, 0.0)
    assert (same.permutation_p, same.sign_p) == (1.0, 1.0)


def test_permutation_test_counts_every_swap() -> None:
    values = [0.5, -0.25, 0.125, 0.0, 0.75, 0.1]
    sums = [
        abs(sum(s * v for s, v in zip(signs, values, strict=True)))
        for signs in product([-1, 1], repeat=len(values))
    ]
    expected = sum(s >= abs(sum(values)) - 1e-12 for s in sums) / len(sums)
    assert permutation_test(np.array(values), draws=1, seed=0) == pytest.approx(expected)


def test_random_swaps_come_to_the_exact_p(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(1).normal(0.4, 1.0, size=14)
    exact = permutation_test(values, draws=1, seed=0)
    monkeypatch.setattr("scope_megatron.instruments.evaluation.paired.EXACT", 0)
    drawn = permutation_test(values, draws=100_000, seed=0)
    assert 0.005 < exact < 0.9
    assert drawn == pytest.approx(exact, abs=4 * (exact * (1 - exact) / 100_000) ** 0.5)
    assert drawn == permutation_test(values, draws=100_000, seed=0)


def test_all_alike_gives_the_smallest_p_there_is() -> None:
    one_way = np.full(10, 0.25)
    found = compare_paired(one_way, draws=1000, seed=0)
    assert found.permutation_p == found.sign_p == pytest.approx(2 / 2**10)
    assert (found.better, found.worse) == (10, 0)
    assert found.low == found.high == 0.25
    many = compare_paired(np.full(40, 0.25), draws=999, seed=0)
    assert many.permutation_p == 1 / 1000, "drawn, never 0"
    assert many.sign_p == pytest.approx(2 * comb(40, 0) / 2**40)


def test_p_is_uniform_when_there_is_no_difference() -> None:
    generator = np.random.default_rng(7)
    p = [permutation_test(generator.normal(size=12), 1, 0) for _ in range(300)]
    assert 0.02 < np.mean(np.array(p) <= 0.05) < 0.09
    assert 0.4 < np.mean(np.array(p) <= 0.5) < 0.6
