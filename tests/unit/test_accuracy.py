from __future__ import annotations

from itertools import combinations

import pytest

from scope_megatron.train.evaluate import avg_at_k, pass_at_k


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
