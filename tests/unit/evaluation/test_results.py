"""Numbers, table and picture of an evaluation whose verdicts are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scope_megatron.instruments.evaluation.output.report import (
    count_results,
    metrics,
    report_results,
)
from scope_megatron.instruments.evaluation.output.results import per_problem, read_results
from scope_megatron.types import Verdict
from tests.unit.evaluation.support import make_evaluation

COUNTS = {"easy": [4, 3, 4, 2], "hard": [0, 1]}  # correct of 4 samples, for every problem


def test_numbers_of_known_verdicts(tmp_path: Path) -> None:
    make_evaluation(tmp_path, "model", COUNTS)
    found = report_results(tmp_path, draws=2000)
    easy, hard = (entry.scores for entry in found.sets)
    assert easy.avg.value == pytest.approx(13 / 16)
    assert [p.k for p in easy.passes] == [1, 2, 4]
    assert easy.pass_at(1).unbiased.value == pytest.approx(easy.avg.value)
    # of problem 4 (2 of 4 right) a pair holds none in 1 of 6 ways, a pair with repeats in 1 of 4
    assert easy.pass_at(2).unbiased.value == pytest.approx((1 + 1 + 1 + 5 / 6) / 4)
    assert easy.pass_at(2).with_replacement.value == pytest.approx((1 + 15 / 16 + 1 + 3 / 4) / 4)
    assert hard.pass_at(4).unbiased.value == 0.5
    assert hard.pass_at(4).with_replacement.value == pytest.approx((1 - 0.75**4) / 2)
    assert found.mean is not None and found.mean.problems == 6
    assert found.mean.avg.value == pytest.approx((13 / 16 + 1 / 8) / 2)
    for scores in (easy, hard, found.mean):
        assert 0 <= scores.avg.low <= scores.avg.value <= scores.avg.high <= 1
    assert read_results(tmp_path) == found


def test_interval_of_a_set_is_that_of_all_resamples(tmp_path: Path) -> None:
    """Two problems, 0 and 1/4: a resampled mean is 0, 1/8 or 1/4, each end in a quarter."""
    make_evaluation(tmp_path, "model", {"hard": [0, 1]})
    scores = report_results(tmp_path, draws=4000).sets[0].scores
    assert (scores.avg.low, scores.avg.high) == (0.0, 0.25)


def test_the_table_is_the_same_however_the_samples_came(tmp_path: Path) -> None:
    for name in ("one", "two"):
        make_evaluation(tmp_path / name, "model", COUNTS)
        report_results(tmp_path / name, draws=500)
    pages = [(tmp_path / name / "table.md").read_text() for name in ("one", "two")]
    assert pages[0] == pages[1]
    lines = pages[0].splitlines()
    assert "| set | problems | Avg@4 | Pass@1 | Pass@2 | Pass@4 |" in lines
    assert [line.split(" | ")[0] for line in lines if line.startswith(("| easy", "| mean"))] == [
        "| easy",
        "| mean",
        "| easy",
        "| mean",
        "| easy",
    ]
    pictures = [(tmp_path / name / "pass_at_k.png").read_bytes() for name in ("one", "two")]
    assert pictures[0] == pictures[1] and pictures[0][:4] == b"\x89PNG"


def test_metrics_have_trainings_names(tmp_path: Path) -> None:
    make_evaluation(tmp_path / "one", "model", {"hard": [0, 1]})
    found = metrics(report_results(tmp_path / "one", draws=100))
    assert found == {
        "eval/avg@4": 0.125,
        "eval/pass@4": 0.5,
        "eval/response_tokens_mean": 11.5,
        "eval/truncated": 0.0,
    }
    make_evaluation(tmp_path / "two", "model", COUNTS)
    assert metrics(report_results(tmp_path / "two", draws=100))["eval/hard/avg@4"] == 0.125


def test_cut_off_and_unjudged_count_as_wrong_and_are_told(tmp_path: Path) -> None:
    store = make_evaluation(tmp_path, "model", {"easy": [4, 4]})
    changed = [
        type(o)(**vars(o) | {"finished": o.sample > 0, "verdict": verdict})
        for o, verdict in zip(
            store.outcomes().values(), [Verdict.CORRECT] * 7 + [Verdict.TIMEOUT], strict=True
        )
    ]
    (entry,) = count_results(store, changed, "math", draws=100).sets
    assert entry.correct == (3, 2)
    assert (entry.truncated, entry.unjudged) == (0.25, 1)
    assert entry.lengths.mean_incorrect == pytest.approx((10 + 10 + 13) / 3)


def test_unfinished_is_refused(tmp_path: Path) -> None:
    make_evaluation(tmp_path, "model", COUNTS)
    path = tmp_path / "samples" / "hard.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-3]))
    with pytest.raises(ValueError, match="3 samples of hard are missing; repeat the evaluate"):
        report_results(tmp_path, draws=100)
    with pytest.raises(ValueError, match=r"no readable results\.json"):
        read_results(tmp_path)


def test_columns_of_a_problem() -> None:
    assert np.allclose(per_problem([1], 2), [[0.5, 0.5, 1.0, 0.5, 0.75]])
