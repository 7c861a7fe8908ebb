"""The recovery study's statistics, on attempts whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tools.recovery.completion import CUTS, Attempt
from tools.recovery.findings import armitage, summarize_recovery
from tools.recovery_study import recovery_markdown


def attempts(slope: float, problems: int = 60, each: int = 4) -> list[Attempt]:
    """Responses whose chance of recovery falls by ``slope`` over the range of perplexities."""
    rng = np.random.default_rng(2)
    made = []
    for problem in range(problems):
        for sample in range(each):
            place = float(rng.random())
            chance = 0.5 - slope * (place - 0.5)
            for cut in CUTS:
                made.append(
                    Attempt(problem, sample, cut, 3, 1 + 9 * place, 8, int(rng.binomial(8, chance)))
                )
    return made


def test_a_falling_recovery_is_found() -> None:
    found = summarize_recovery(attempts(0.8))
    whole = [one for one in found["quartiles"] if one["cut"] is None]
    assert [one["responses"] for one in whole] == [60] * 4
    recoveries = [one["recovery"] for one in whole]
    assert recoveries == sorted(recoveries, reverse=True)
    assert recoveries[0] == pytest.approx(0.8, abs=0.05)
    assert all(one["low"] < one["recovery"] < one["high"] for one in whole)
    assert whole[0]["low"] > whole[3]["high"]
    trend = found["trends"][-1]
    assert trend["spearman"] < -0.9 and trend["spearman_p"] < 0.01
    assert trend["spearman_within"] < -0.8 and trend["within_p"] < 0.01
    first_cut = found["trends"][0]
    assert first_cut["armitage_z"] < -2
    assert "Q4" in recovery_markdown(found)


def test_no_trend_is_not_made_up() -> None:
    trend = summarize_recovery(attempts(0.0))["trends"][-1]
    assert abs(trend["spearman"]) < 0.15 and trend["spearman_p"] > 0.05
    assert trend["within_p"] > 0.05


def test_problems_alone_make_no_correlation_within_a_problem() -> None:
    rng = np.random.default_rng(4)
    made = []
    for problem in range(60):
        for sample in range(4):
            perplexity = 1 + problem / 6 + float(rng.random())
            for cut in CUTS:
                share = int(rng.binomial(8, 0.9 - problem / 75))
                made.append(Attempt(problem, sample, cut, 3, perplexity, 8, share))
    trend = summarize_recovery(made)["trends"][-1]
    assert trend["spearman"] < -0.8
    assert abs(trend["spearman_within"]) < 0.2 and trend["within_p"] > 0.05


def test_armitage_by_hand() -> None:
    """Doses 0 to 3 of ten each, with 8, 6, 4, 2 events."""
    dose = np.repeat(np.arange(4.0), 10)
    event = np.concatenate([np.arange(10) < hits for hits in (8, 6, 4, 2)])
    z, p = armitage(dose, event)
    # sum of (dose - 1.5) over events: -12 - 3 + 2 + 3 = -10; variance 0.25 * 50
    assert z == pytest.approx(-10 / math.sqrt(12.5))
    assert p == pytest.approx(math.erfc(abs(z) / math.sqrt(2)))
    assert armitage(dose, np.ones(40, bool)) == (0.0, 1.0)


def test_too_few_responses_are_refused() -> None:
    with pytest.raises(ValueError, match="only 4 incorrect responses"):
        summarize_recovery(attempts(0.5, problems=1))
