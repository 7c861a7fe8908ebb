"""`scope-megatron plan`: tables, JSON, a picture, YAML that `check` accepts, wrong inputs.

The messages are in tests/golden/plan_errors.txt. After a change of wording:
    UPDATE_GOLDEN=1 python -m pytest tests/unit/plan/test_plan_command.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from scope_megatron import cli
from scope_megatron.instruments.plan.facts.known import KNOWN
from scope_megatron.outputs import METRICS
from tests.support.config_run import RUN_YAML, edit_json, make_run

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests" / "golden" / "plan_errors.txt"
UPDATE = bool(os.environ.get("UPDATE_GOLDEN"))
PLAN = ["plan", "run.yaml", "--gpu", "h100"]
EIGHT = [*PLAN, "--gpus", "8"]
# name: (key=value of student/config.json, arguments)
CASES: dict[str, tuple[dict[str, object], list[str]]] = {
    "no_gpus": ({}, PLAN),
    "zero_gpus": ({}, [*PLAN, "--gpus", "0"]),
    "fewer_than_none": ({}, [*PLAN, "--gpus", "-8"]),
    "too_many_gpus": ({}, [*PLAN, "--gpus", "2000000"]),
    "prime_gpus_of_a_cut": ({}, [*PLAN, "--gpus", "7", "parallel.tensor=2"]),
    "prime_gpus_searched": ({}, [*PLAN, "--gpus", "997", "--search"]),
    "prime_gpus_of_replicas": ({}, [*PLAN, "--gpus", "7"]),
    "more_gpus_than_prompts": ({}, [*PLAN, "--gpus", "1024"]),
    "more_gpus_than_cuts": ({}, [*PLAN, "--gpus", "16384", "--search"]),
    "more_ranks_than_gpus": ({}, [*PLAN, "--gpus", "2", "parallel.tensor=2", "parallel.data=2"]),
    "gpu_unknown": ({}, ["plan", "run.yaml", "--gpus", "8", "--gpu", "voodoo2"]),
    "gpu_empty": ({}, ["plan", "run.yaml", "--gpus", "8", "--gpu", ""]),
    "no_file": ({}, ["plan", "none.yaml", "--gpus", "8"]),
    "student_unknown": ({}, [*EIGHT, "model.student=nobody/none"]),
    "student_misspelt": ({}, [*EIGHT, "model.student=Qwen/Qwen3-9B"]),
    "student_is_no_config": ({}, [*EIGHT, "model.student=train.jsonl"]),
    "teacher_missing": ({}, [*EIGHT, "model.teacher=null"]),
    "teacher_unknown": ({}, [*EIGHT, "model.teacher=gone"]),
    "architecture_unknown": ({"architectures": ["GPT5ForCausalLM"]}, EIGHT),
    "architecture_missing": ({"architectures": None}, EIGHT),
    "hidden_missing": ({"hidden_size": None}, EIGHT),
    "hidden_negative": ({"hidden_size": -64}, EIGHT),
    "layers_text": ({"num_hidden_layers": "four"}, EIGHT),
    "layers_zero": ({"num_hidden_layers": 0}, EIGHT),
    "heads_uneven": ({"num_attention_heads": 3}, EIGHT),
    "heads_not_cut": ({}, [*EIGHT, "parallel.tensor=8"]),
    "layers_not_cut": ({}, [*EIGHT, "parallel.pipeline=8"]),
    "no_experts": ({}, [*EIGHT, "parallel.expert=3"]),
    "engine_not_cut": ({}, [*EIGHT, "parallel.tensor=2", "rollout.engine.tensor=4"]),
    "microbatch_too_small": ({}, [*EIGHT, "train.microbatch_tokens=10"]),
    "unknown_key": ({}, [*EIGHT, "parallel.tensro=2"]),
    "response_too_long": ({}, [*EIGHT, "--mean-response", "1e9"]),
    "response_nan": ({}, [*EIGHT, "--mean-response", "nan"]),
    "response_negative": ({}, [*EIGHT, "--mean-response", "-5"]),
    "prompt_too_long": ({}, [*EIGHT, "--mean-prompt", "101"]),
    "share_above_one": ({}, [*EIGHT, "--incorrect", "1.5"]),
    "sigma_too_wide": ({}, [*EIGHT, "--sigma", "40"]),
    "run_missing": ({}, [*EIGHT, "--from-run", "nowhere"]),
    "run_empty": ({}, [*EIGHT, "--from-run", "empty"]),
    "calibrated_to_nothing": ({}, [*EIGHT, "--calibrate", "empty"]),
    "efficiencies_missing": ({}, [*EIGHT, "--efficiencies", "none.yaml"]),
    "efficiencies_other": ({}, [*EIGHT, "--efficiencies", "run.yaml"]),
    "efficiencies_zero": ({}, [*EIGHT, "--efficiencies", "zero.yaml"]),
    "context_not_cut": ({}, [*EIGHT, "parallel.context=3", "train.microbatch_tokens=999"]),
    "context_pads": ({}, [*EIGHT, "parallel.context=2", "train.microbatch_tokens=400"]),
    "teacher_not_cut": ({}, [*EIGHT, "teacher.parallel.tensor=3"]),
    "teacher_cut_over_too_many": ({}, [*EIGHT, "teacher.parallel.pipeline=16"]),
    "sampling_ranks_left_none": (
        {},
        [*EIGHT, "rollout.placement=separate", "rollout.ranks=8", "parallel.tensor=2"],
    ),
    "ahead_beside_the_trainer": ({}, [*EIGHT, "rollout.lag=1"]),
    "states_unknown": ({}, [*EIGHT, "optimizer.states=half"]),
    "lengths_missing": ({}, [*EIGHT, "--lengths", "none.txt"]),
    "lengths_of_words": ({}, [*EIGHT, "--lengths", "run.yaml"]),
    "lengths_empty": ({}, [*EIGHT, "--lengths", "empty/metrics.jsonl"]),
    "lengths_too_long": ({}, [*EIGHT, "--lengths", "long.txt"]),
    "lengths_beside_a_mean": ({}, [*EIGHT, "--lengths", "long.txt", "--mean-response", "9"]),
    "picture_of_no_kind": ({}, [*EIGHT, "--picture", "plan.docx"]),
    "picture_nowhere": ({}, [*EIGHT, "--picture", "no/such/folder/plan.png"]),
    "out_nowhere": ({}, [*EIGHT, "--out", "no/such/folder/plan.yaml"]),
    "nothing_fits": (
        {},
        [*PLAN, "--gpus", "4", "--search", "model.student=meta-llama/Llama-3.1-405B"]
        + ["model.teacher=meta-llama/Llama-3.1-70B"],
    ),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_run(tmp_path, monkeypatch)
    Path("empty").mkdir()
    Path("empty", METRICS).write_text("\n")
    Path("run.yaml").write_text(RUN_YAML.replace("prompts_per_step: 4", "prompts_per_step: 16"))
    Path("zero.yaml").write_text("train: 0\n")
    Path("long.txt").write_text("20\n9999\n")
    return tmp_path


def run(arguments: list[str]) -> Result:
    return CliRunner(env={"COLUMNS": "120"}).invoke(cli.app, arguments)


def golden() -> dict[str, str]:
    lines = GOLDEN.read_text().splitlines() if GOLDEN.is_file() else []
    return dict(line.split(": ", 1) for line in lines if line)


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_input_ends_in_one_line(name: str, folder: Path) -> None:
    changes, arguments = CASES[name]
    if changes:
        edit_json("student/config.json", **changes)
    result = run(arguments)
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and ("; " in line or "did you mean" in line)
    told = line.removeprefix("error: ").replace(str(folder), "FOLDER")
    if UPDATE:
        lines = golden() | {name: told}
        GOLDEN.write_text("".join(f"{n}: {lines[n]}\n" for n in CASES if n in lines))
    assert golden()[name] == told


def test_the_golden_file_has_no_other_lines() -> None:
    assert list(golden()) == list(CASES) and len(CASES) >= 40


def test_tables_name_every_tenant_and_phase(folder: Path) -> None:
    result = run(EIGHT)
    assert result.exit_code == 0, result.output
    for word in ("student", "masters", "teacher", "kv cache", "rollout", "train", "fits: "):
        assert word in result.stdout, word


def test_json_has_what_the_tables_say(folder: Path) -> None:
    result = run([*EIGHT, "--json", "parallel.tensor=2"])
    told = json.loads(result.stdout)
    assert told["gpus"] == 8 and told["layout"]["data"] == 4 and told["fits"] is True
    phases = told["memory"][0]["phases"]
    assert told["peak_bytes"] == max(sum(held.values()) for held in phases.values())
    assert told["seconds_per_step"] == pytest.approx(sum(told["seconds"].values()))
    by_part = sum(told["seconds_by_part"].values())
    assert by_part == pytest.approx(told["seconds_per_step"])


def test_the_picture_is_drawn(folder: Path) -> None:
    apart = ["rollout.placement=separate", "rollout.ranks=4", "rollout.lag=1"]
    for more in ([], apart):
        result = run([*EIGHT, "--picture", "plan.svg", *more])
        assert result.exit_code == 0, result.output
        words = Path("plan.svg").read_text()
        assert "<svg" in words and ("sampling rank" in words) == bool(more)


def test_ranks_that_train_and_ranks_that_sample_have_a_table_each(folder: Path) -> None:
    apart = ["rollout.placement=separate", "rollout.ranks=4"]
    told = run([*EIGHT, *apart]).stdout
    assert "GiB on a rank of pipeline stage 0" in told
    assert "GiB on a rank that only samples" in told and told.count("kv cache") == 1


def test_what_is_offloaded_is_told_in_host_memory(folder: Path) -> None:
    assert "in host memory" not in run(EIGHT).stdout
    away = ["teacher.offload=cpu", "optimizer.offload=rollout"]
    assert "in host memory" in run([*EIGHT, *away]).stdout
    told = json.loads(run([*EIGHT, "--json", *away]).stdout)
    plain = json.loads(run([*EIGHT, "--json"]).stdout)["memory"][0]["phases"]["train"]
    held = sum(plain[name] for name in ("masters", "optimizer", "teacher"))
    assert told["host_bytes"] == pytest.approx(held, rel=1e-6)


def test_check_accepts_what_a_search_writes(folder: Path) -> None:
    result = run([*PLAN, "--gpus", "4", "--search", "--out", "best.yaml"])
    assert result.exit_code == 0, result.output
    checked = run(["check", "best.yaml", "--gpus-per-node", "4"])
    assert checked.exit_code == 0, checked.output
    again = run(["plan", "best.yaml", "--gpus", "4", "--json"])
    best = json.loads(run([*PLAN, "--gpus", "4", "--search", "--json"]).stdout)
    assert json.loads(again.stdout)["layout"] == best["layout"], "the file says it all"


def test_lengths_come_from_a_run(folder: Path) -> None:
    row = {"time/step": 1.0, "rollout/response_tokens_mean": 200.0, "path/correct": 3.0}
    row |= {"path/incorrect": 1.0, "tokens/response": 2000.0, "tokens/total": 2500.0}
    Path("empty", METRICS).write_text(json.dumps(row) + "\n")
    told = json.loads(run([*EIGHT, "--from-run", "empty", "--json"]).stdout)["work"]
    assert told["mean_response_tokens"] == pytest.approx(200, rel=1e-3)
    assert told["mean_prompt_tokens"] == pytest.approx(50) and told["incorrect"] == 0.25


def test_lengths_of_a_run_that_wrote_them_down_are_its_own(folder: Path) -> None:
    row = {"time/step": 1.0, "rollout/response_tokens_mean": 200.0}
    Path("empty", METRICS).write_text(json.dumps(row) + "\n")
    index = Path("empty", "rollouts", "index")
    index.mkdir(parents=True)
    lines = [{"kind": "train", "step": s, "tokens": n} for s in (1, 2) for n in (s, 10, 250)]
    lines.append({"kind": "eval", "step": 2, "tokens": 9999})
    (index / "00000.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    told = json.loads(run([*EIGHT, "--from-run", "empty", "--json"]).stdout)["work"]
    assert told["mean_response_tokens"] == pytest.approx((2 + 10 + 250) / 3, rel=0.02)
    assert told["longest_response_tokens"] == 250 and told["lengths"] == "empty"


def test_lengths_come_from_a_file(folder: Path) -> None:
    Path("lengths.txt").write_text("\n".join(["50"] * 9 + ["300"]))
    told = json.loads(run([*EIGHT, "--lengths", "lengths.txt", "--json"]).stdout)["work"]
    assert told["mean_response_tokens"] == pytest.approx(75, rel=0.05)
    assert told["longest_response_tokens"] == 300 and told["lengths"] == "lengths.txt"


def test_states_as_parameters_need_no_masters(folder: Path) -> None:
    plain, half = (
        json.loads(run([*EIGHT, "--json", *more]).stdout)["memory"][0]["phases"]["train"]
        for more in ((), ("optimizer.states=parameters",))
    )
    assert "masters" in plain and "masters" not in half
    for tenant in ("gradients", "optimizer"):
        assert half[tenant] == pytest.approx(plain[tenant] / 2, rel=1e-6), tenant


def test_each_teacher_is_planned_in_its_own_layout(folder: Path) -> None:
    two = ["model.teacher=null", "objective.kl=sampled"]
    a, b = "model.teachers.a.path=teacher", "model.teachers.b.path=student"
    alike = json.loads(run([*EIGHT, "--json", *two, a, b]).stdout)
    own = ["model.teachers.a.parallel.tensor=2", "model.teachers.b.offload=cpu"]
    apart = json.loads(run([*EIGHT, "--json", *two, a, b, *own]).stdout)
    before, after = (told["memory"][0]["phases"] for told in (alike, apart))
    sizes = [model["parameters"] for model in alike["models"]]
    element = 2
    assert before["rollout"]["teacher"] >= element * (sizes[1] + sizes[2])
    assert after["rollout"]["teacher"] == pytest.approx(element * sizes[1] / 2, rel=0.05)
    assert after["score"]["teacher"] > after["rollout"]["teacher"], "b is brought while it scores"


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ((), "colocated"),
        (("rollout.placement=separate", "rollout.ranks=2", "rollout.lag=1"), "separate"),
    ],
)
def test_check_accepts_what_a_search_of_any_placement_writes(
    given: tuple[str, ...], kept: str, folder: Path
) -> None:
    result = run([*PLAN, "--gpus", "8", "--search", "--out", "best.yaml", *given])
    assert result.exit_code == 0, result.output
    assert f"placement: {kept}" in Path("best.yaml").read_text()
    checked = run(["check", "best.yaml", "--gpus-per-node", "8"])
    assert checked.exit_code == 0, checked.output


@pytest.mark.parametrize("name", [*list(KNOWN)[::4], "example/moe-1T"])
def test_every_built_in_model_can_be_planned(name: str, folder: Path) -> None:
    student = [f"model.student={name}", f"model.teacher={name}"]
    large = [*student, "rollout.prompts_per_step=64"]
    result = run(["plan", "run.yaml", "--gpu", "gb200", "--gpus", "256", "--search", *large])
    assert result.exit_code == 0 or "no layout of 256 fits" in result.stderr, result.output


SHIPPED = [
    path
    for path in sorted((ROOT / "configs").rglob("*.yaml"))
    if path.name != "smollm2.yaml"  # its models are made on the spot
]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_configuration_can_be_planned(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    for more in ([], ["--search"]):
        result = run(["plan", str(path), "--gpus", "64", *more])
        assert result.exit_code == 0, result.output
        assert ("placement: " in result.stdout) == ("kv cache" in result.stdout)


def test_planning_imports_no_torch(folder: Path) -> None:
    code = (
        "import sys; from scope_megatron import cli\n"
        f"try: cli.app({EIGHT!r})\nexcept SystemExit as end: assert not end.code, end.code\n"
        "assert not {'torch', 'transformers', 'vllm', 'megatron'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
