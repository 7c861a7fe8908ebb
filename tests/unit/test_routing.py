from __future__ import annotations

import math

import pytest

from scope_megatron.objective import route

REWARDS = [1.0, 0.0, None, 1.0, 0.0, 1.0, 0.99, None]
FINISHED = [True, True, True, False, False, True, True, False]
LENGTHS = [5, 5, 5, 9, 9, 0, 3, 9]


def test_each_verdict_takes_its_path():
    routes = route(REWARDS, FINISHED, LENGTHS)
    assert routes.correct.nonzero().flatten().tolist() == [0]
    assert routes.incorrect.nonzero().flatten().tolist() == [1, 3, 4, 6]  # a lucky cut-off is wrong
    assert routes.masked.nonzero().flatten().tolist() == [2, 5, 7]  # unjudged, empty, unjudged


def test_truncated_responses_can_be_masked():
    routes = route(REWARDS, FINISHED, LENGTHS, truncated="mask")
    assert routes.incorrect.nonzero().flatten().tolist() == [1, 6]
    assert routes.masked.nonzero().flatten().tolist() == [2, 3, 4, 5, 7]


@pytest.mark.parametrize("truncated", ["incorrect", "mask"])
def test_every_response_has_exactly_one_route(truncated):
    cases = [(r, f, n) for r in (None, 0.0, 1.0) for f in (True, False) for n in (0, 1)]
    routes = route(*zip(*cases, strict=True), truncated=truncated)
    total = routes.correct.int() + routes.incorrect.int() + routes.masked.int()
    assert total.tolist() == [1] * len(cases)
    assert routes.routed.equal(~routes.masked)


def test_refusals():
    assert route([], [], []).correct.shape == (0,)
    with pytest.raises(ValueError, match=r"objective\.truncated"):
        route([1.0], [True], [1], truncated="drop")
    with pytest.raises(ValueError, match="one entry per response"):
        route([1.0], [True, True], [1])
    with pytest.raises(ValueError, match="response 1 is NaN"):
        route([1.0, math.nan], [True, True], [1, 1])
