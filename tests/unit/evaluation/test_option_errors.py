"""Wrong options of evaluate, regrade and compare end in one line that names the option.

The lines are in tests/golden/evaluate_errors.txt. After a change of wording:
    UPDATE_GOLDEN=1 python -m pytest tests/unit/evaluation/test_option_errors.py
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from scope_megatron import cli
from tests.support.config_run import leave, make_run, remove, student, truncate, write

GOLDEN = Path(__file__).parents[2] / "golden" / "evaluate_errors.txt"
UPDATE = bool(os.environ.get("UPDATE_GOLDEN"))
DIR = ["--model", "student", "--data", "eval.jsonl"]
YAML = ["run.yaml"]


def checkpoint(config: bool = False) -> Callable[[], None]:
    """A run with something that looks like a Megatron checkpoint."""

    def do() -> None:
        write("run/checkpoints/step_00000003/.metadata", "")()
        if config:
            write("run/checkpoints/step_00000003/config.json", "{}")()

    return do


def ranks(count: int) -> Callable[[], None]:
    def do() -> None:
        os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": str(count)}

    return do


def occupied() -> None:
    write("out/thesis.tex", "text")()


# name: (change of the files, arguments). The message is in the golden file under the name.
CASES: dict[str, tuple[Callable[[], None], list[str]]] = {
    "nothing_asked": (leave, ["evaluate"]),
    "model_option_missing": (leave, ["evaluate", "--data", "eval.jsonl"]),
    "data_option_missing": (leave, ["evaluate", "--model", "student"]),
    "n_zero": (leave, ["evaluate", *DIR, "--n", "0"]),
    "temperature_negative": (leave, ["evaluate", *DIR, "--temperature", "-1"]),
    "temperature_nan": (leave, ["evaluate", *DIR, "--temperature", "nan"]),
    "greedy_samples": (leave, ["evaluate", *DIR, "--temperature", "0", "--n", "4"]),
    "top_p_above_one": (leave, ["evaluate", *DIR, "--top-p", "1.5"]),
    "top_p_zero": (leave, ["evaluate", *DIR, "--top-p", "0"]),
    "top_k_below": (leave, ["evaluate", *DIR, "--top-k", "-2"]),
    "top_k_above_vocabulary": (leave, ["evaluate", *DIR, "--top-k", "65"]),
    "max_tokens_zero": (leave, ["evaluate", *DIR, "--max-tokens", "0"]),
    "prompt_above_context": (leave, ["evaluate", *DIR, "--max-prompt-tokens", "512"]),
    "limit_zero": (leave, ["evaluate", *DIR, "--limit", "0"]),
    "seed_negative": (leave, ["evaluate", *DIR, "--seed", "-1"]),
    "draws_few": (leave, ["evaluate", *DIR, "--draws", "10"]),
    "dtype_unknown": (leave, ["evaluate", *DIR, "--dtype", "int4"]),
    "device_unknown": (leave, ["evaluate", *DIR, "--device", "tpu"]),
    "device_with_config": (leave, ["evaluate", *YAML, "--device", "cpu"]),
    "verifier_unknown": (leave, ["evaluate", *DIR, "--verifier", "oracle"]),
    "custom_missing": (leave, ["evaluate", *DIR, "--verifier", "custom"]),
    "custom_no_function": (leave, ["evaluate", *DIR, "--custom", "grader"]),
    "workers_zero": (leave, ["evaluate", *DIR, "--workers", "0"]),
    "engines_zero": (leave, ["evaluate", *DIR, "--engines", "0"]),
    "engines_against_world": (ranks(2), ["evaluate", *DIR, "--engines", "3"]),
    "engine_tensor_over_ranks": (ranks(3), ["evaluate", *DIR, "--engine-tensor", "2"]),
    "engine_tensor_over_heads": (leave, ["evaluate", *DIR, "--engine-tensor", "3"]),
    "gpu_memory_above_one": (leave, ["evaluate", *DIR, "--gpu-memory-utilization", "2"]),
    "kv_cache_zero": (leave, ["evaluate", *DIR, "--kv-cache-gib", "0"]),
    "max_num_seqs_zero": (leave, ["evaluate", *DIR, "--max-num-seqs", "0"]),
    "data_missing": (leave, ["evaluate", *DIR, "--data", "more.jsonl"]),
    "data_unknown_format": (write("d.csv", "a,b"), ["evaluate", *DIR, "--data", "d.csv"]),
    "data_empty": (write("d.jsonl", ""), ["evaluate", *DIR, "--data", "d.jsonl"]),
    "data_names_alike": (leave, ["evaluate", *DIR, "--data", "eval=train.jsonl"]),
    "data_name_bad": (leave, ["evaluate", *DIR, "--data", "a/b=train.jsonl"]),
    "model_missing": (leave, ["evaluate", "--model", "nowhere/x", "--data", "eval.jsonl"]),
    "model_is_file": (leave, ["evaluate", "--model", "run.yaml", "--data", "eval.jsonl"]),
    "model_is_nothing": (
        write("empty/readme", ""),
        ["evaluate", "--model", "empty", "--data", "eval.jsonl"],
    ),
    "model_weights_truncated": (truncate("student/model.safetensors", 4), ["evaluate", *DIR]),
    "model_tokenizer_missing": (remove("student/tokenizer.json"), ["evaluate", *DIR]),
    "model_head_dim": (student(head_dim=16), ["evaluate", *DIR]),
    "run_without_checkpoint": (
        lambda: Path("run/checkpoints").mkdir(parents=True),
        ["evaluate", "--model", "run", "--data", "eval.jsonl"],
    ),
    "run_damaged": (checkpoint(), ["evaluate", "--model", "run", "--data", "eval.jsonl"]),
    "checkpoint_without_config": (
        checkpoint(),
        ["evaluate", "--model", "run/checkpoints/step_00000003", "--data", "eval.jsonl"],
    ),
    "base_without_config": (
        checkpoint(),
        [
            *("evaluate", "--model", "run/checkpoints/step_00000003", "--data", "eval.jsonl"),
            *("--base", "empty"),
        ],
    ),
    "base_for_directory": (leave, ["evaluate", *DIR, "--base", "teacher"]),
    "out_is_file": (leave, ["evaluate", *DIR, "--out", "run.yaml"]),
    "out_occupied": (occupied, ["evaluate", *DIR, "--out", "out"]),
    "engines_with_config": (leave, ["evaluate", *YAML, "--engines", "2"]),
    "config_without_eval": (leave, ["evaluate", *YAML, "data.eval=null"]),
    "config_unknown_key": (leave, ["evaluate", *YAML, "evaluation.sample=2"]),
    "config_model_missing": (leave, ["evaluate", *YAML, "--model", "nowhere"]),
    "regrade_verifier_unknown": (leave, ["regrade", "run", "--verifier", "oracle"]),
    "regrade_custom_missing": (leave, ["regrade", "run", "--verifier", "custom"]),
    "regrade_nothing": (leave, ["regrade", "nowhere", "--verifier", "math"]),
    "regrade_draws": (leave, ["regrade", "nowhere", "--verifier", "math", "--draws", "1"]),
    "regrade_workers": (leave, ["regrade", "nowhere", "--verifier", "math", "--workers", "0"]),
    "compare_nothing": (leave, ["compare", "run", "nowhere"]),
    "compare_draws": (leave, ["compare", "run", "nowhere", "--draws", "1"]),
}


def read_golden() -> dict[str, str]:
    lines = GOLDEN.read_text(encoding="utf-8").splitlines() if GOLDEN.exists() else []
    return dict(line.split("\t", 1) for line in lines)


def write_golden(name: str, line: str) -> None:
    known = read_golden() | {name: line}
    text = "".join(f"{case}\t{known[case]}\n" for case in CASES if case in known)
    GOLDEN.write_text(text, encoding="utf-8")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):  # put back what a case sets
        monkeypatch.setenv(name, "")
    return make_run(tmp_path, monkeypatch)


@pytest.mark.parametrize("name", CASES)
def test_bad_option(name: str, run: Path) -> None:
    change, arguments = CASES[name]
    change()
    before = sorted(run.rglob("*"))
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 2, result.exception
    assert result.stderr.count("\n") == 1 and result.stderr.endswith("\n"), result.stderr
    assert result.stdout == ""
    assert sorted(run.rglob("*")) == before, "a refused evaluation leaves no trace"
    line = result.stderr.rstrip("\n")
    if UPDATE:
        write_golden(name, line)
    assert line == read_golden()[name]


def test_golden_file_has_exactly_the_cases() -> None:
    assert list(read_golden()) == list(CASES)
