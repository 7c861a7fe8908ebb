"""Whole runs through the command line: Megatron ranks, vLLM engines, the shipped assets."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.checkpoint_tensors import read_tensors
from tests.support.forked import run_command

ROOT = Path(__file__).resolve().parents[2]
STEPS = 10
ROWS = 208  # of training data, 32 to a step: an epoch ends in the middle of step 7
TIMEOUT_S = 240


def command(output: Path, *overrides: str, launcher: tuple[str, ...] = ()) -> list[str]:
    settings = [
        f"output_dir={output}",
        f"train.steps={STEPS}",
        "evaluation.every=0",
        "evaluation.limit=32",
        "checkpoint.every=2",
        f"data.train={short_data(output.parent)}",
        "logging.tensorboard=false",
        "profile.steps=[2]",
    ]
    start = launcher or (sys.executable, "-m", "scope_megatron")
    return [*start, "train", "configs/quickstart.yaml", *settings, *overrides]


def short_data(directory: Path) -> Path:
    path = directory / "train.jsonl"
    with (ROOT / "assets/arithmetic/train.jsonl").open() as rows:
        path.write_text("".join(line for _, line in zip(range(ROWS), rows, strict=False)))
    return path


def start(args: list[str]) -> subprocess.Popen[str]:
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        args, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and output; a hang is interrupted, then killed, and fails the test."""
    try:
        output, _ = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, output


def rows(output: Path) -> list[dict[str, Any]]:
    path = output / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def steps(output: Path) -> dict[int, dict[str, Any]]:
    return {row["step"]: row for row in rows(output) if "reward/mean" in row}


def forked(output: Path, *overrides: str) -> str:
    """What the command prints where its two ranks are forked (tests/support/forked.py)."""
    arguments = command(output, *overrides)[3:]
    codes, text = run_command(arguments, 2, output.with_suffix(".log"), TIMEOUT_S)
    assert codes == [0, 0], text
    return text


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    output = tmp_path_factory.mktemp("run") / "whole"
    code, text = finish(start(command(output)))
    assert code == 0, text
    return output, text


def test_the_student_gets_better(uninterrupted: tuple[Path, str]) -> None:
    output, text = uninterrupted
    assert sorted(steps(output)) == list(range(1, STEPS + 1))
    before, after = (row["eval/avg@8"] for row in rows(output) if "eval/avg@8" in row)
    assert before < 0.65, "the shipped student should start clearly below its teacher"
    assert after > before + 0.15
    assert "Avg@8" in text and "points" in text


def test_the_engine_computes_with_the_trainers_weights(uninterrupted: tuple[Path, str]) -> None:
    for row in steps(uninterrupted[0]).values():
        assert row["mismatch/mean_abs_logprob"] < 1e-4
    checked = {
        s: row for s, row in steps(uninterrupted[0]).items() if "sync/max_abs_logprob_diff" in row
    }
    assert list(checked) == [1, 2, 3, 4, 5, 10], (
        "each of the first five transfers, then every fifth"
    )
    for row in checked.values():
        assert row["sync/max_abs_logprob_diff"] < 1e-4


def test_what_a_step_tells_of_itself(uninterrupted: tuple[Path, str]) -> None:
    """Entropy by path, padding and waiting; a trace of the steps that were asked for."""
    output, _ = uninterrupted
    for row in steps(output).values():
        for side in ("student_correct", "student_incorrect", "teacher_incorrect"):
            assert 0 < row[f"entropy/{side}"] < math.log(200), side
        assert row["balance/padded_share"] == 0 and row["balance/imbalance"] == 1
        assert 0 <= row["time/wait"] <= row["time/train"]
    traces = sorted(path.name for path in (output / "profile").iterdir())
    assert traces == [f"step_00000002_rank_{rank:05d}.json" for rank in (0, 1)]
    events = json.loads((output / "profile" / traces[0]).read_text())["traceEvents"]
    assert any(event.get("name") == "aten::mm" for event in events)


def test_what_a_run_leaves_behind(uninterrupted: tuple[Path, str]) -> None:
    output, _ = uninterrupted
    assert (output / "report.png").stat().st_size > 10_000
    latest = (output / "checkpoints" / "latest").read_text().strip()
    assert latest == f"step_{STEPS:08d}"
    assert (output / "checkpoints" / latest / "metadata.json").exists()
    from transformers import AutoModelForCausalLM

    trained = AutoModelForCausalLM.from_pretrained(output / "hf").state_dict()
    start_ = AutoModelForCausalLM.from_pretrained(ROOT / "assets/tiny-student").state_dict()
    assert trained.keys() == start_.keys()
    assert all(not trained[name].equal(start_[name]) for name in trained if "proj" in name)


def test_responses_are_written_down(uninterrupted: tuple[Path, str]) -> None:
    """Steps 5 and 10 by default, four groups of eight; samples of both evaluations."""
    import pyarrow.parquet as pq

    folder = uninterrupted[0] / "rollouts"
    names = sorted(path.name for path in folder.glob("*.parquet"))
    steps_ = ["step_00000005.parquet", f"step_{STEPS:08d}.parquet"]
    assert names == ["eval_00000000.parquet", f"eval_{STEPS:08d}.parquet", *steps_]
    found = pq.read_table(folder / steps_[0]).to_pylist()
    assert [(row["group"], row["sample"]) for row in found] == [
        (group, sample) for group in range(4) for sample in range(8)
    ]
    for row in found:
        length = row["response_tokens"]
        assert len(row["token_ids"]) == len(row["tokens"]) == len(row["engine_logprobs"]) == length
        assert row["student_logprobs"] == pytest.approx(row["engine_logprobs"], abs=1e-3)
        wrong = row["path"] == "incorrect"
        assert (row["teacher_logprobs"] is not None) == wrong, "the teacher scores incorrect ones"
        assert (row["verdict"] == "incorrect") >= (not row["finished"]) or wrong
        assert "".join(row["tokens"]).startswith(row["response"])
    for group in range(4):
        for path in ("correct", "incorrect"):
            weights = [r["weight"] for r in found if (r["group"], r["path"]) == (group, path)]
            assert not weights or sum(weights) == pytest.approx(1.0, abs=1e-5)
    events = [json.loads(line) for line in (folder.parent / "events.jsonl").open()]
    assert [event["kind"] for event in events] == ["start", "finish"]


def test_interrupt_saves_and_resume_gives_the_same_run_bit_for_bit(
    uninterrupted: tuple[Path, str], tmp_path: Path
) -> None:
    output = tmp_path / "cut"
    process = start(command(output))
    deadline = time.monotonic() + TIMEOUT_S
    while not (output / "run.lock").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    second_code, second_text = finish(start(command(output, "resume=auto")))
    while len(steps(output)) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    code, text = finish(process)
    assert second_code == 2 and "is in use by process" in second_text, second_text
    assert code == 128 + signal.SIGINT, text
    assert "resume=auto" in text and "Traceback" not in text
    done = max(steps(output))
    assert 3 <= done < STEPS
    forked(output, "resume=auto")
    text = forked(output, "resume=auto")  # once more: nothing is left to do
    assert "is finished" in text
    whole, cut = steps(uninterrupted[0]), steps(output)
    assert sorted(cut) == sorted(whole)
    for step, row in whole.items():
        for name in row:
            if not name.startswith(("time/", "memory/", "overlap/", "sampling/")):
                assert cut[step][name] == row[name], (step, name, done)
    last = f"checkpoints/step_{STEPS:08d}"
    ours, theirs = read_tensors(output / last), read_tensors(uninterrupted[0] / last)
    assert ours.keys() == theirs.keys() and len(ours) > 20
    assert [name for name in ours if not ours[name].equal(theirs[name])] == []
    assert [r["step"] for r in rows(output) if "eval/avg@8" in r] == [0, STEPS]


LAYOUTS = {
    "pipeline": ("parallel.tensor=1", "parallel.pipeline=2"),
    "one-engine-over-both-ranks": (
        *("parallel.tensor=2", "parallel.sequence=true"),
        "rollout.engine.tensor=2",
    ),
    "data": ("parallel.tensor=1", "parallel.data=2", "optimizer.distributed=true"),
    "context": ("parallel.tensor=1", "parallel.context=2"),
}
# ten steps of these, started otherwise, are in test_golden_losses.py: pytest -m study
GOLDEN_TOO = ("pipeline", "data")


@pytest.mark.parametrize(
    "layout",
    [
        pytest.param(settings, id=name, marks=[pytest.mark.study] if name in GOLDEN_TOO else [])
        for name, settings in LAYOUTS.items()
    ],
)
def test_other_layouts_start_the_same_run(
    uninterrupted: tuple[Path, str], tmp_path: Path, layout: tuple[str, ...]
) -> None:
    """By torchrun, or forked; the first step samples the same tokens and sees the same loss."""
    overrides = ("train.steps=2", "evaluation.before=false", "evaluation.after=false", *layout)
    if layout == LAYOUTS["one-engine-over-both-ranks"]:
        torchrun = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2")
        launcher = (*torchrun, "--rdzv-endpoint=localhost:0", "--rdzv-backend=c10d", "-m")
        args = command(tmp_path / "run", *overrides, launcher=(*launcher, "scope_megatron"))
        code, text = finish(start(args))
        assert code == 0, text
    else:
        forked(tmp_path / "run", *overrides)
    first, expected = steps(tmp_path / "run")[1], steps(uninterrupted[0])[1]
    assert first["tokens/response"] == expected["tokens/response"]
    assert first["reward/mean"] == expected["reward/mean"]
    assert first["loss/total"] == pytest.approx(expected["loss/total"], rel=1e-4, abs=1e-6)
    assert first["sync/max_abs_logprob_diff"] < 1e-4
