"""The diagnosis: what it reads of a run, and the advice that follows from it."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from scipy.stats import spearmanr
from typer.testing import CliRunner

from scope_megatron.cli import app
from scope_megatron.report.figure import write_report
from scope_megatron.report.fit import fit_lines, measure_fit
from scope_megatron.report.webpage import write_html

N = 40
FITTING: dict[str, Sequence[float]] = {
    "path/correct": [120.0] * N,
    "path/incorrect": [130.0] * N,
    "reward/mean": [0.3 + 0.01 * n for n in range(N)],
    "perplexity/student_correct": [1.5] * N,
    "perplexity/student_incorrect": [2.0] * N,
    "perplexity/teacher_incorrect": [9.0 - 0.1 * n for n in range(N)],
    "weight/student_ess": [0.8] * N,
    "weight/teacher_ess": [0.7] * N,
    "group/all_correct": [0.1] * N,
    "group/all_incorrect": [0.5 - 0.01 * n for n in range(N)],
}


def a_run(folder: Path, **changes: Sequence[float]) -> Path:
    values = FITTING | {name.replace("__", "/"): given for name, given in changes.items()}
    lines = [
        {"step": step + 1, **{name: given[step] for name, given in values.items() if given}}
        for step in range(N)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_first_and_last_steps_and_correlations(tmp_path: Path) -> None:
    found = {f.name: f for f in measure_fit(a_run(tmp_path)).findings}
    assert found["group/all_incorrect"].first == pytest.approx(0.465)
    assert found["group/all_incorrect"].last == pytest.approx(0.145)
    assert found["rank/next_accuracy"].last == pytest.approx(-1.0), "one falls, the other rises"


def test_the_gain_is_set_against_the_step_s_own_accuracy(tmp_path: Path) -> None:
    rng = random.Random(1)
    teacher, reward = ([rng.random() for _ in range(N)] for _ in range(2))
    run = a_run(tmp_path, perplexity__teacher_incorrect=teacher, reward__mean=reward)
    found = {f.name: f.last for f in measure_fit(run).findings}
    after = [sum(reward[n + 1 : n + 6]) / 5 for n in range(N - 5)]
    gain = [a - r for a, r in zip(after, reward, strict=False)]
    expected = spearmanr(teacher[: N - 5], gain).statistic
    assert found["rank/next_gain"] == pytest.approx(float(expected))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "SCOPE fits: both"),
        ({"weight__student_ess": [0.999] * N}, "the student's weights choose nothing"),
        ({"weight__teacher_ess": [1.0] * N}, "the teacher's weights choose nothing"),
        (
            {"weight__student_ess": [1.0] * N, "weight__teacher_ess": [1.0] * N},
            "SCOPE's weights choose nothing",
        ),
        ({"weight__student_ess": [], "weight__teacher_ess": []}, "has no weights"),
        ({"group__all_incorrect": [0.9] * N}, "too hard"),
        ({"group__all_correct": [0.9] * N, "group__all_incorrect": [0.0] * N}, "too easy"),
        ({"group__all_correct": [0.5] * N}, "fits the mixed groups"),
    ],
)
def test_advice(changes: dict[str, Sequence[float]], said: str, tmp_path: Path) -> None:
    assert said in measure_fit(a_run(tmp_path, **changes)).advice


@pytest.mark.parametrize(
    ("within", "said"), [(-0.3, "SCOPE fits: both"), (0.1, "no measure of trust")]
)
def test_recovery_is_read_where_it_was_measured(within: float, said: str, tmp_path: Path) -> None:
    found = {"spearman": -0.4, "spearman_within": within, "recovery": 0.3, "student_mass": 0.9}
    (tmp_path / "recovery.json").write_text(json.dumps(found))
    told = measure_fit(a_run(tmp_path))
    assert said in told.advice
    assert any(
        "student's mass on the teacher's top k tokens: 0.900" in line for line in told.lines()
    )


def test_command_report_and_page_say_it(tmp_path: Path) -> None:
    a_run(tmp_path)
    done = CliRunner().invoke(app, ["diagnose", str(tmp_path)])
    assert done.exit_code == 0 and "advice: SCOPE fits: both" in done.output
    reported = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert "advice: SCOPE fits: both" in reported.output
    page = (tmp_path / "report.html").read_text()
    assert "Does SCOPE fit?" in page and "advice: SCOPE fits: both" in page


def test_a_run_without_responses_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss/total": 2.0}\n')
    done = CliRunner().invoke(app, ["diagnose", str(tmp_path)])
    assert done.exit_code == 2 and "no step with graded responses" in done.output
    assert fit_lines(tmp_path) == []
    write_report(tmp_path)
    write_html(tmp_path)
    assert "Does SCOPE fit?" not in (tmp_path / "report.html").read_text()
    done = CliRunner().invoke(app, ["diagnose", str(tmp_path / "none")])
    assert done.exit_code == 2 and "is no directory" in done.output
