"""Two evaluations problem by problem, and the same samples under another verifier."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from scope_megatron import cli
from scope_megatron.config import VerifierConfig
from scope_megatron.instruments.evaluation.compare import compare_results, compared_markdown
from scope_megatron.instruments.evaluation.output.report import report_results
from scope_megatron.instruments.evaluation.output.results import Results
from scope_megatron.instruments.evaluation.paired import sign_test
from scope_megatron.instruments.evaluation.regrade import regrade
from tests.unit.evaluation.support import make_evaluation


def evaluation(directory: Path, name: str, counts: list[int], samples: int = 4) -> Results:
    make_evaluation(directory / name, name, {"sums": counts}, samples)
    return report_results(directory / name, draws=100)


def test_differences_are_those_of_the_problems(tmp_path: Path) -> None:
    a = evaluation(tmp_path, "a", [0, 1, 2, 3, 4, 2])
    b = evaluation(tmp_path, "b", [1, 2, 2, 4, 4, 1])
    compared = compare_results(a, b, draws=2000, seed=1)
    assert [row.metric for row in compared.rows] == ["Avg", "Pass@2", "Pass@4"]
    avg = compared.rows[0]
    assert (avg.a, avg.b) == (0.5, pytest.approx(14 / 24))
    assert avg.paired.difference == pytest.approx(2 / 24)
    assert (avg.paired.better, avg.paired.worse) == (3, 1)
    assert avg.paired.sign_p == sign_test(3, 1) == pytest.approx(10 / 16)
    assert avg.paired.low <= avg.paired.difference <= avg.paired.high
    swapped = compare_results(b, a, draws=2000, seed=1).rows[0].paired
    assert swapped.difference == -avg.paired.difference
    assert (swapped.low, swapped.high) == pytest.approx((-avg.paired.high, -avg.paired.low))
    assert swapped.permutation_p == avg.paired.permutation_p
    page = compared_markdown(compared)
    assert "| sums | Avg | 6 | 50.0 | 58.3 | +8.3 [" in page and "| 3 / 1 |" in page


def test_a_model_that_is_better_everywhere_is_found(tmp_path: Path) -> None:
    a, b = (evaluation(tmp_path, name, [count] * 40) for name, count in (("a", 1), ("b", 3)))
    paired = compare_results(a, b, draws=10_000, seed=1).rows[0].paired
    assert paired.permutation_p == 1 / 10_001
    assert paired.sign_p < 1e-9
    assert (paired.low, paired.high) == (0.5, 0.5)


def test_problems_of_one_evaluation_only_are_left_out_and_told(tmp_path: Path) -> None:
    a = evaluation(tmp_path, "a", [4, 4, 4, 4])
    b = evaluation(tmp_path, "b", [0, 0], samples=2)
    compared = compare_results(a, b, draws=100, seed=1)
    assert [(row.metric, row.problems, row.a, row.b) for row in compared.rows] == [
        ("Avg", 2, 1.0, 0.0),
        ("Pass@2", 2, 1.0, 0.0),
    ]
    assert compared.notes == ("2 problems of sums are in one evaluation only: left out",)


def test_nothing_in_common_is_refused(tmp_path: Path) -> None:
    a = evaluation(tmp_path, "a", [1])
    make_evaluation(tmp_path / "b", "b", {"other": [1]})
    b = report_results(tmp_path / "b", draws=100)
    with pytest.raises(ValueError, match="A and B have no problem in common: sums and other"):
        compare_results(a, b, draws=100, seed=1)


def test_regraded_verdicts_replace_wrong_ones(tmp_path: Path) -> None:
    """A verdict on disk that the text does not deserve is corrected; the samples stay."""
    make_evaluation(tmp_path, "model", {"sums": [4, 2, 0]})
    path = tmp_path / "samples" / "sums.jsonl"
    rows = [json.loads(line) for line in path.open()]
    rows[0]["verdict"] = "timeout"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    before = path.read_bytes()
    assert report_results(tmp_path, draws=100).sets[0].correct == (3, 2, 0)
    found = regrade(tmp_path, VerifierConfig(name="math"), draws=100)
    assert found.sets[0].correct == (4, 2, 0)
    assert found.verifier == "math"
    assert path.read_bytes() == before
    verdicts = (tmp_path / "regraded" / "math" / "verdicts.jsonl").read_text().splitlines()
    assert len(verdicts) == 12
    assert json.loads(verdicts[0]) == {
        "set": "sums",
        "problem": 0,
        "sample": 0,
        "verdict": "correct",
    }


def test_regraded_as_the_reference_code_grades(tmp_path: Path) -> None:
    """A string comparison does not know that 1/2 is 0.50000, which mathematics does."""
    make_evaluation(tmp_path, "model", {"sums": [1]})
    problems, samples = tmp_path / "problems" / "sums.jsonl", tmp_path / "samples" / "sums.jsonl"
    row = json.loads(problems.read_text()) | {"answer": "0.5"}
    problems.write_text(json.dumps(row) + "\n")
    answers = ["\\frac12", "0.50000", "\\frac{4}{8}", "2"]
    rows = [json.loads(line) for line in samples.open()]
    texts = [
        json.dumps(row | {"text": f"\\boxed{{{answer}}}", "verdict": "timeout"}) + "\n"
        for row, answer in zip(rows, answers, strict=True)
    ]
    samples.write_text("".join(texts))
    by_string = regrade(tmp_path, VerifierConfig(name="string"), draws=100)
    by_mathematics = regrade(tmp_path, VerifierConfig(name="math"), draws=100)
    assert (by_string.sets[0].correct, by_mathematics.sets[0].correct) == ((1,), (3,))
    assert (tmp_path / "regraded" / "string" / "table.md").exists()


def test_the_commands(tmp_path: Path) -> None:
    make_evaluation(tmp_path, "model", {"sums": [4, 2, 0]})
    regraded = CliRunner().invoke(
        cli.app, ["regrade", str(tmp_path), "--verifier", "math", "--draws", "100"]
    )
    assert regraded.exit_code == 0, regraded.output
    assert "0 of 12 verdicts changed" in regraded.stdout
    report_results(tmp_path, draws=100)
    out = tmp_path / "compared"
    again = str(tmp_path / "regraded" / "math")
    compared = CliRunner().invoke(cli.app, ["compare", str(tmp_path), again, "--out", str(out)])
    assert compared.exit_code == 0, compared.output
    assert compared.stdout == (out / "compare.md").read_text()
    assert "A: model (verifier auto)" in compared.stdout
    assert json.loads((out / "compare.json").read_text())["rows"][0]["paired"]["sign_p"] == 1.0
    assert (out / "pass_at_k.png").stat().st_size > 5_000
