"""Advice on a run: each rule speaks where its metrics say so, and a healthy run hears nothing."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from scope_megatron.logging.health import ENOUGH, WINDOW, Advice, HealthWatch, advice
from tests.support.study_rows import Row, finished_runs, metrics_of, rows_of

N = 60
HEALTHY: dict[str, Sequence[float]] = {
    "weight/student_ess": [0.9] * N,
    "weight/teacher_ess": [0.8] * N,
    "path/correct": [120.0] * N,
    "path/incorrect": [130.0] * N,
    "path/masked": [6.0] * N,
    "group/all_correct": [0.1] * N,
    "rollout/response_tokens_mean": [100.0 + n / 10 for n in range(N)],
    "rollout/truncated": [4.0] * N,
    "perplexity/teacher_incorrect": [1.9] * N,
    "perplexity/student_incorrect": [1.4] * N,
    "mismatch/mean_abs_prob": [0.001] * N,
    "grad_norm": [1.0 + 0.5 * (n % 2) for n in range(N)],
    "entropy/student_incorrect": [0.5] * N,
    "reward/mean": [0.4 + n / 300 for n in range(N)],
    "time/wait": [0.1] * N,
    "time/train": [2.0] * N,
}


def rules(**changes: Sequence[float]) -> list[str]:
    values = HEALTHY | {name.replace("__", "/"): given for name, given in changes.items()}

    def series(name: str) -> tuple[list[int], list[float]]:
        found = list(values.get(name, []))
        return list(range(1, len(found) + 1)), found

    told = advice(series)
    assert all(item.text and item.source for item in told)
    return [item.rule for item in told]


def test_a_healthy_run_hears_nothing() -> None:
    assert rules() == []


@pytest.mark.parametrize(
    ("rule", "changes"),
    [
        ("weights_equal", {"weight__student_ess": [0.999] * N}),
        ("path_empty", {"path__correct": [0.0] * N}),
        ("path_empty", {"path__incorrect": [1.0] * N}),
        ("masked", {"path__masked": [60.0] * N}),
        (
            "length_inflation",
            {
                "rollout__response_tokens_mean": [100.0 + 5 * n for n in range(N)],
                "rollout__truncated": [40.0] * N,
            },
        ),
        ("truncated", {"rollout__truncated": [80.0] * N}),
        ("teacher_lost", {"perplexity__teacher_incorrect": [50.0] * N}),
        ("teacher_agrees", {"perplexity__teacher_incorrect": [1.401] * N}),
        ("mismatch_rises", {"mismatch__mean_abs_prob": [0.001] * 30 + [0.02] * 30}),
        ("grad_spike", {"grad_norm": [1.0] * (N - 3) + [9.0, 1.0, 1.0]}),
        ("skipped", {"update__skipped": [1.0]}),
        (
            "entropy_collapse",
            {"entropy__student_incorrect": [1.0] * 30 + [0.05] * 30, "reward__mean": [0.4] * N},
        ),
        ("waiting", {"time__wait": [1.0] * N}),
    ],
)
def test_each_rule_speaks(rule: str, changes: dict[str, Sequence[float]]) -> None:
    assert rules(**changes) == [rule]


def test_what_is_long_past_is_forgotten() -> None:
    assert rules(grad_norm=[90.0] + [1.0] * (N - 1)) == []
    assert rules(path__correct=[0.0] * (N - WINDOW) + [120.0] * WINDOW) == []


def test_too_few_steps_are_not_judged() -> None:
    few = ENOUGH - 1
    assert rules(path__correct=[0.0] * few, weight__student_ess=[0.1] * few) == []


def test_a_run_without_metrics_hears_nothing() -> None:
    assert advice(lambda name: ([], [])) == []


def test_warnings_come_first() -> None:
    told = rules(time__wait=[1.0] * N, path__masked=[60.0] * N)
    assert told == ["masked", "waiting"]


def test_single_responses_have_no_path_to_fill() -> None:
    """opd with a response per prompt: no group, so no half of an objective that could be idle."""
    assert rules(path__correct=[1.0] * N, group__all_correct=[]) == []


def heard(row: Row) -> list[Advice]:
    """All that a run of the study would have been told, at any of its steps."""
    watch = HealthWatch()
    return [item for step, values in metrics_of(row).items() for item in watch.add(step, values)]


def test_the_teacher_is_called_lost_where_it_costs_points_and_nowhere_else() -> None:
    """On walk and walk_hard_part, whose teacher knows a part: no teacher is 4 and 5 points ahead of
    SCOPE. Not on walk_strong, where every method with its teacher gains 16 points and more."""
    told = {
        (row["task"], row["method"]) for row in finished_runs() if "teacher_lost" in rules_of(row)
    }
    assert {task for task, _ in told} == {"walk", "walk_hard_part"}
    taught = {"opd", "scope", "scope_exact", "no_teacher", "no_weights", "tau_2"}
    assert taught <= {method for task, method in told if task == "walk"}


@pytest.mark.parametrize(("task", "method"), [("walk", "batch"), ("walk_strong", "tau_0.5")])
def test_no_one_is_told_to_raise_tau(task: str, method: str) -> None:
    """Effective sample sizes of the teacher's weights below 0.35: the first is 3.5 points ahead of
    SCOPE, the second 3.0 behind."""
    for row in rows_of(task, method):
        assert not any("tau" in item.text for item in heard(row))


def test_a_run_of_the_study_hears_of_nothing_else() -> None:
    """Weights that are equal are those that were switched off."""
    for row in finished_runs():
        said = rules_of(row) - {"teacher_lost"}
        uniform = row["method"].startswith("no_") or row["method"].endswith("no_teacher")
        assert said == ({"weights_equal"} if uniform else set()), row["method"]


def rules_of(row: Row) -> set[str]:
    return {item.rule for item in heard(row)}
