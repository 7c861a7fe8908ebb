"""The study's own arithmetic: rows that survive a kill, paired intervals, chosen rates."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from benchmarks.study import cells, tables
from benchmarks.study.estimates import bootstrap, difference, values_at
from benchmarks.study.methods import KD, METHODS, RATES, RESPONSES, STEPS
from benchmarks.study.results import TaskResults
from benchmarks.study.rows import Key, RowFile
from benchmarks.study.runner import claimed, read_correct, read_series
from benchmarks.study.settings import TEST, Place, fingerprint, nested, run_settings
from scope_megatron.config import Config
from scope_megatron.config.rules import setting_problems
from tools.tasks.table import TASKS


def row(method: str = "scope", seed: int = 1, lr: float = 3e-4, split: str = TEST) -> dict:
    key = Key("walk", method, seed, lr, split, "mark")
    return vars(key) | {"samples": 4, "correct": {"easy": [4, 0], "hard": [1, 2]}}


def place(tmp_path: Path, parameters: bytes = b"1") -> Place:
    found = Place(tmp_path / "data", tmp_path / "student", tmp_path / "teacher")
    for folder in (found.data, found.student, found.teacher):
        folder.mkdir(parents=True, exist_ok=True)
    for name in ("train", "tuning", "easy", "hard"):
        (found.data / f"{name}.jsonl").write_text(name)
    for folder in (found.student, found.teacher):
        (folder / "model.safetensors").write_bytes(parameters)
    return found


def test_a_line_cut_short_is_made_again_and_others_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = RowFile(path)
    rows.add(row(seed=1))
    rows.add(row(seed=2))
    path.write_bytes(path.read_bytes()[:-20])
    again = RowFile(path)
    assert [key.seed for key in again.rows] == [1]
    again.add(row(seed=2))
    assert [key.seed for key in RowFile(path).rows] == [1, 2]
    assert [r["seed"] for r in again.select("walk", TEST, ["mark"])] == [1, 2]
    assert again.select("walk", TEST, ["another"]) == []


def test_interval_covers_seeds_and_problems() -> None:
    rng = np.random.default_rng(3)
    true, inside = 0.3, 0
    for trial in range(100):
        seeds, problems = rng.normal(0, 0.05, (8, 1)), rng.normal(0, 0.2, (1, 60))
        values = true + seeds + problems + rng.normal(0, 0.1, (8, 60))
        found = bootstrap(values, draws=400, seed=trial)
        assert found.low < found.value < found.high
        inside += found.low <= true <= found.high
    assert 80 <= inside <= 100


def test_differences_are_paired_on_common_seeds() -> None:
    base = np.linspace(0, 1, 50)
    ours = {1: base + 0.1, 2: base + 0.1, 9: base * 0}
    found = difference(ours, {1: base, 2: base, 3: base})
    assert found is not None and found.seeds == 2
    assert found.low == pytest.approx(0.1) and found.high == pytest.approx(0.1)
    assert difference(ours, {4: base}) is None


def test_pass_at_1_is_the_average() -> None:
    correct = np.array([[0.0, 1.0, 4.0]])
    assert values_at(correct, 4, 1)[0] == pytest.approx([0, 0.25, 1])
    assert values_at(correct, 4, 4)[0] == pytest.approx([0, 1, 1])


def study_results(task: str, gain: int = 0) -> TaskResults:
    """Two seeds of SCOPE, right ``gain`` times more of 32 than OPD on every problem."""
    runs: dict[str, dict[int, dict]] = {"scope": {}, "opd": {}}
    for name, right in (("scope", 16 + gain), ("opd", 16)):
        for seed in (1, 2):
            entropy = [[step, float(seed) if step > 2 else 100.0] for step in range(1, 8)]
            correct = {"easy": [right] * 3, "hard": [right] * 3}
            steps = {"entropy/student_correct": entropy}
            runs[name][seed] = {"correct": correct, "samples": 32, "steps": steps}
    return TaskResults(task, {}, runs, [])


def test_the_summary_has_a_column_for_every_task() -> None:
    table = tables.summary_table([study_results("walk", 8), study_results("chains")])
    row = "| OPD | **+25.0** [+25.0, +25.0] | +0.0 [+0.0, +0.0] "
    assert row in table and "Avg@32 walk | Avg@32 chains | Pass@32 walk" in table


def test_rollouts_are_compared_over_the_last_steps() -> None:
    results = study_results("walk", 8)
    for seed, (ours, theirs) in {1: (0.5, 0.75), 2: (0.75, 0.75)}.items():
        for name, value in (("scope", ours), ("opd", theirs)):
            early = [[step, 0.0 if name == "scope" else 1.0] for step in range(1, 3)]
            late = [[step, value] for step in range(3, 8)]
            results.runs[name][seed]["steps"]["reward/mean"] = early + late
    found = results.sampled_gain("scope", "opd")
    assert found is not None and found.value == pytest.approx(-0.125)
    assert "| OPD | **+25.0** [+25.0, +25.0] | +0.0 [+0.0, +0.0] | -12.5 [-25.0, +0.0] |" in (
        tables.summary_table([results])
    )
    results.runs["grpo"] = results.runs.pop("opd")
    assert "| SCOPE | **+25.0** [+25.0, +25.0] | -12.5 [-25.0, +0.0] |" in (
        tables.rewarded_table([results])
    )


def test_scope_is_compared_with_the_base_student_too() -> None:
    results = study_results("walk", 8)
    results.runs["base"] = results.runs.pop("opd")
    assert "| base student | **+25.0** [+25.0, +25.0] |" in tables.summary_table([results])


def test_endings_are_of_the_last_steps_and_all_seeds() -> None:
    table = tables.endings_table(study_results("walk"), steps=5)
    assert "| SCOPE | 1.500 (1.000 to 2.000) |  |  |  |" in table


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda method: method.name)
def test_every_method_is_a_valid_configuration_with_as_many_responses(
    method, tmp_path: Path
) -> None:
    settings = run_settings(TASKS["walk"], method, place(tmp_path), 3, 1e-4, TEST)
    config = Config.model_validate(
        yaml.safe_load(yaml.safe_dump(nested({**settings, "output_dir": str(tmp_path / "run")})))
    )
    assert setting_problems(config, "train") == []
    assert config.world_size == 1 and config.verifier.name == "custom"
    if method.name != "base":
        assert config.train.steps == STEPS
    if method is KD:
        assert config.train.batch_sequences == RESPONSES
    else:
        rollout = config.rollout
        assert rollout is not None
        assert rollout.prompts_per_step * rollout.group_size == RESPONSES


def test_fingerprint_follows_contents_not_places(tmp_path: Path) -> None:
    marks = []
    for name, parameters, lr in (
        ("a", b"1", 0.1),
        ("b", b"1", 0.1),
        ("c", b"2", 0.1),
        ("d", b"1", 0.2),
    ):
        here = place(tmp_path / name, parameters)
        settings = run_settings(TASKS["walk"], METHODS["scope"], here, 0, lr, TEST)
        marks.append(fingerprint(settings, here))
    assert marks[0] == marks[1] and len(set(marks)) == 3


def test_the_best_rate_is_chosen_when_all_were_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cells, "fingerprint_of", lambda *_: "mark")
    rows = RowFile(tmp_path / "rows.jsonl")
    for rate, right in zip(RATES, (5, 9, 9, 4), strict=True):
        assert cells.chosen_rates("walk", rows, tmp_path) == {}
        rows.add(row(lr=rate, split="tuning") | {"correct": {"tuning": [right, right]}})
    assert cells.chosen_rates("walk", rows, tmp_path) == {"scope": RATES[1]}, "ties: the smaller"
    assert cells.rate_of("tau_2", {"scope": 3e-4}) == 3e-4
    assert cells.rate_of("opd", {"scope": 3e-4}) is None


def test_small_is_the_beginning_of_full() -> None:
    small = list(cells.test_cells(cells.PROFILES["small"]))
    assert {cell.task for cell in small} == {"walk", "walk_strong", "countdown"}
    full = list(cells.test_cells(cells.PROFILES["full"]))
    assert len(small) == 3 * 5 * 3 and set(small) <= set(full)
    assert len(full) == len(set(full))
    assert {cell.task for cell in full if cell.method == "jsd"} == {"walk"}
    assert {cell.seed for cell in full if cell.method == "mle_only"} == {1, 2, 3}
    main = [cell.method in cells.PROFILES["small"].methods for cell in full]
    assert main == sorted(main, reverse=True)


def test_what_a_run_wrote_is_read(tmp_path: Path) -> None:
    index = tmp_path / "rollouts" / "index"
    index.mkdir(parents=True)
    lines = [
        {"kind": kind, "step": step, "set": name, "group": group, "verdict": v, "finished": f}
        for kind, step, name, group, v, f in (
            ("eval", 10, "easy", 0, "correct", True),
            ("eval", 30, "easy", 0, "incorrect", True),
            ("eval", 30, "easy", 1, "correct", True),
            ("eval", 30, "easy", 1, "correct", False),
            ("eval", 30, "hard", 0, "correct", True),
            ("train", 30, "", 0, "correct", True),
        )
    ]
    (index / "00000.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_correct(tmp_path) == {"easy": [0, 1], "hard": [1]}
    metrics = [
        {"step": 1, "reward/mean": 0.5, "lr": 1.0},
        {"step": 2, "reward/mean": 0.6},
        {"step": 2, "eval/easy/avg@32": 0.25},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(m) + "\n" for m in metrics))
    assert read_series(tmp_path) == {
        "reward/mean": [[1, 0.5], [2, 0.6]],
        "eval/easy/avg@32": [[2, 0.25]],
    }


def test_a_run_is_made_by_one_process_and_others_see_its_row(tmp_path: Path) -> None:
    key = Key.of(row())
    with claimed(key, tmp_path) as mine, claimed(key, tmp_path) as again:
        assert mine and not again
    with claimed(key, tmp_path) as mine:
        assert mine
    ours, theirs = RowFile(tmp_path / "rows.jsonl"), RowFile(tmp_path / "rows.jsonl")
    theirs.add(row())
    assert key not in ours.rows and key in ours.read()
