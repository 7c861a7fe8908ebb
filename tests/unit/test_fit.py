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
from scope_megatron.instruments.report.figure import write_report
from scope_megatron.instruments.report.fit import fit_lines, measure_fit
from scope_megatron.instruments.report.webpage import write_html
from scope_megatron.learn import observe
from scope_megatron.types import Prompt, Rollout, Verdict
from tests.support.steps import batch_of
from tests.support.study_rows import finished_runs, metrics_of, rows_of

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
        ({}, "the weights have responses to choose among"),
        ({"weight__student_ess": [0.999] * N}, "the student's weights choose nothing"),
        ({"weight__teacher_ess": [1.0] * N}, "the teacher's weights choose nothing"),
        (
            {"weight__student_ess": [1.0] * N, "weight__teacher_ess": [1.0] * N},
            "the student's and the teacher's weights choose nothing",
        ),
        ({"weight__student_ess": [], "weight__teacher_ess": []}, "has no weights"),
        ({"group__all_incorrect": [0.9] * N}, "most groups have no correct response"),
        (
            {"group__all_correct": [0.9] * N, "group__all_incorrect": [0.0] * N},
            "most groups have no incorrect response",
        ),
    ],
)
def test_advice(changes: dict[str, Sequence[float]], said: str, tmp_path: Path) -> None:
    assert said in measure_fit(a_run(tmp_path, **changes)).advice


@pytest.mark.parametrize("within", [-0.3, 0.1])
def test_recovery_is_told_and_no_weights_are_advised_by_it(within: float, tmp_path: Path) -> None:
    """On countdown and walk_strong recovery does not fall with the teacher's perplexity within a
    prompt (+0.083, +0.143), and uniform teacher weights are no better for it: 0.5, 0.4 behind."""
    found = {"spearman": -0.4, "spearman_within": within, "recovery": 0.3, "student_mass": 0.9}
    (tmp_path / "recovery.json").write_text(json.dumps(found))
    told = measure_fit(a_run(tmp_path))
    assert "teacher_weight" not in told.advice
    assert f"the same among responses of one prompt: {within:.3f}" in told.lines()
    assert any(
        "student's mass on the teacher's top k tokens: 0.900" in line for line in told.lines()
    )


def advice_of(row: dict, folder: Path) -> str:
    lines = [{"step": step, **values} for step, values in metrics_of(row).items()]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return measure_fit(folder).advice


def test_no_run_of_the_study_is_told_that_scope_fits(tmp_path: Path) -> None:
    """The same figures stand beside 2.0 points ahead of GRPO (walk_strong) and 7.7 behind (walk):
    which it is they do not say, and what does no run measures."""
    told = {
        task: {advice_of(row, tmp_path) for row in rows_of(task, "scope")}
        for task in ("walk_strong", "walk", "countdown")
    }
    assert told["walk_strong"] == told["walk"] == told["countdown"]
    (advice,) = told["walk"]
    assert "fits" not in advice and "scope-megatron evaluate" in advice


def test_what_the_study_does_not_bear_out_is_not_advised(tmp_path: Path) -> None:
    """Neither tau 0.5 nor uniform teacher weights are ahead of SCOPE in any task, kd is behind in
    two of three."""
    for row in finished_runs():
        if row["method"] not in ("base", "kd"):
            told = advice_of(row, tmp_path)
            assert not any(word in told for word in ("tau", "uniform", "temperature", "name=kd"))


def test_single_responses_are_not_too_hard(tmp_path: Path) -> None:
    """What a step of opd with a response per prompt measures, 15 % of them right."""
    right = [Verdict.CORRECT] * 3 + [Verdict.INCORRECT] * 17
    batch = batch_of(
        [
            Rollout(Prompt(group, (1,), "1"), 0, [5], [-1.0], finished=True, verdict=verdict)
            for group, verdict in enumerate(right)
        ]
    )
    metrics = observe.step_metrics()
    observe._rollouts(metrics, batch)
    observe._groups(metrics, batch)
    lines = [{"step": step, **metrics.reduce(None)} for step in range(1, 11)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    told = measure_fit(tmp_path)
    assert "has no weights" in told.advice and not told.findings


def test_command_report_and_page_say_it(tmp_path: Path) -> None:
    a_run(tmp_path)
    done = CliRunner().invoke(app, ["diagnose", str(tmp_path)])
    assert done.exit_code == 0 and "advice: the weights have" in done.output
    reported = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert "advice: the weights have" in reported.output
    page = (tmp_path / "report.html").read_text()
    assert "What SCOPE has to work on" in page and "advice: the weights have" in page


def test_a_run_without_responses_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss/total": 2.0}\n')
    done = CliRunner().invoke(app, ["diagnose", str(tmp_path)])
    assert done.exit_code == 2 and "no step with graded responses" in done.output
    assert fit_lines(tmp_path) == []
    write_report(tmp_path)
    write_html(tmp_path)
    assert "What SCOPE has to work on" not in (tmp_path / "report.html").read_text()
    done = CliRunner().invoke(app, ["diagnose", str(tmp_path / "none")])
    assert done.exit_code == 2 and "is no directory" in done.output
