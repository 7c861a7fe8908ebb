"""Evaluations through the command line: the shipped teacher on the shipped problems, by vLLM."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.support import kd_run
from tests.support.forked import run_command

ROOT = Path(__file__).resolve().parents[2]
TEACHER = "assets/tiny-teacher"
SAMPLES, PROBLEMS = 32, 12  # of each of two sets
TIMEOUT_S = 250
pytestmark = pytest.mark.timeout(560)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The first problems of the shipped evaluation set in two halves, as options."""
    directory = tmp_path_factory.mktemp("sets")
    lines = (ROOT / "assets/arithmetic/eval.jsonl").read_text().splitlines(keepends=True)
    for name, start in (("easy", 0), ("hard", PROBLEMS)):
        (directory / f"{name}.jsonl").write_text("".join(lines[start : start + PROBLEMS]))
    return ["--data", str(directory / "easy.jsonl"), f"second={directory / 'hard.jsonl'}"]


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "scope_megatron", *map(str, arguments)]


def asked(sets: list[str], out: Path, *options: str, model: str = TEACHER) -> list[str]:
    sampling = ["--n", str(SAMPLES), "--max-tokens", "64", "--max-num-seqs", "16"]
    return command("evaluate", "--model", model, *sets, *sampling, "--out", out, *options)


def start(args: list[str]) -> subprocess.Popen[str]:
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        args, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(args: list[str], code: int = 0) -> str:
    return ended(start(args), code)


def ended(process: subprocess.Popen[str], code: int = 0) -> str:
    try:
        output, _ = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode == code, output
    return output


def forked(args: list[str], log: Path, ranks: int = 1) -> str:
    """What a command prints whose processes are forked (tests/support/forked.py)."""
    codes, text = run_command(args[3:], ranks, log, TIMEOUT_S)
    assert codes == [0] * ranks, text
    return text


def samples(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((out / "samples").iterdir())}


Cut = tuple[Path, int, str]  # its directory, samples that it had drawn, what it printed


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, sets: list[str]) -> tuple[tuple[Path, str], Cut]:
    """An evaluation in one go, and one that is killed in the middle, at the same time."""
    directory = tmp_path_factory.mktemp("evaluation")
    out, cut = directory / "whole", directory / "cut"
    one, other = start(asked(sets, out)), start(asked(sets, cut))
    deadline = time.monotonic() + TIMEOUT_S
    while written(cut) < SAMPLES and time.monotonic() < deadline and other.poll() is None:
        time.sleep(0.02)
    other.send_signal(signal.SIGKILL)
    other.wait()
    before = written(cut)
    return (out, ended(one)), (cut, before, other.communicate()[0])


@pytest.fixture(scope="module")
def whole(both: tuple[tuple[Path, str], Cut]) -> tuple[Path, str]:
    """The evaluation in one go, and what it printed."""
    return both[0]


def test_the_teacher_is_nearly_always_right(whole: tuple[Path, str]) -> None:
    out, printed = whole
    results = json.loads((out / "results.json").read_text())
    assert [entry["scores"]["name"] for entry in results["sets"]] == ["easy", "second"]
    assert results["mean"]["avg"]["value"] > 0.85
    table = (out / "table.md").read_text()
    assert table in printed
    assert f"| easy | {PROBLEMS} |" in table and "Pass@32" in table
    assert (out / "pass_at_k.png").stat().st_size > 10_000
    lines = [json.loads(line) for line in (out / "samples" / "easy.jsonl").open()]
    assert [(r["problem"], r["sample"]) for r in lines] == [
        (i, k) for i in range(PROBLEMS) for k in range(SAMPLES)
    ]


def test_killed_in_the_middle_and_resumed_gives_the_same(
    both: tuple[tuple[Path, str], Cut], sets: list[str], tmp_path: Path
) -> None:
    whole, (out, before, said) = both
    assert SAMPLES <= before < 2 * PROBLEMS * SAMPLES, said
    printed = forked(asked(sets, out), tmp_path / "resumed")
    assert f"{before} samples are there already" in printed
    assert samples(out) == samples(whole[0])
    for name in ("table.md", "results.json", "pass_at_k.png"):
        assert (out / name).read_bytes() == (whole[0] / name).read_bytes(), name
    again = forked(
        asked(sets, out), tmp_path / "again"
    )  # nothing is left to draw: no engine starts
    assert "samples to draw" not in again
    assert (whole[0] / "table.md").read_text() in again
    other = finish(asked(sets, out, "--seed", "7"), code=2)
    assert "sampling.seed is 1234 there, 7 here" in other and "Traceback" not in other


def written(out: Path) -> int:
    parts = list((out / "parts").glob("*.jsonl"))
    return sum(path.read_bytes().count(b"\n") for path in parts)


def test_two_engines_draw_the_same(
    whole: tuple[Path, str], sets: list[str], tmp_path: Path
) -> None:
    printed = finish(asked(sets, tmp_path / "two", "--engines", "2"))
    assert "with 2 engines" in printed
    assert samples(tmp_path / "two") == samples(whole[0])
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in str(p.info)]


def test_regraded_and_compared(whole: tuple[Path, str], tmp_path: Path) -> None:
    out, _ = whole
    printed = finish(command("regrade", out, "--verifier", "math"))
    assert f"0 of {2 * PROBLEMS * SAMPLES} verdicts changed" in printed
    again = out / "regraded" / "math"
    one, other = (json.loads((d / "results.json").read_text()) for d in (out, again))
    assert other["sets"] == one["sets"]
    printed = finish(command("regrade", out, "--verifier", "string"))  # whole numbers: the same
    assert f"0 of {2 * PROBLEMS * SAMPLES} verdicts changed" in printed
    page = finish(command("compare", out, again, "--out", tmp_path))
    assert "| easy | Avg |" in page and "0 / 0" in page
    assert (tmp_path / "pass_at_k.png").exists()


def test_a_checkpoint_is_judged_as_its_export_is(sets: list[str], tmp_path: Path) -> None:
    """Converted on the way to vLLM: the same tokens as from the exported directory."""
    settings = kd_run.settings(tmp_path, "train.steps=2", "checkpoint.export_hf=true")
    forked(command("train", *settings), tmp_path / "train", ranks=2)
    run = tmp_path / "run"
    (run / "hf").rename(tmp_path / "exported")
    few = ["--limit", "3"]
    printed = forked(asked(sets, tmp_path / "a", *few, model=str(run)), tmp_path / "one")
    forked(asked(sets, tmp_path / "b", *few, model=str(tmp_path / "exported")), tmp_path / "other")
    assert f"converting {run}/checkpoints/step_00000002 for vLLM" in printed
    assert samples(tmp_path / "a") == samples(tmp_path / "b")
    assert not (tmp_path / "a" / "converted").exists()


def test_with_a_configuration(tmp_path: Path) -> None:
    """As before: model.student on data.eval, one JSON line at the end; now with samples kept."""
    few = ["evaluation.samples=2", "evaluation.limit=8", f"output_dir={tmp_path / 'run'}"]
    arguments = ["configs/quickstart.yaml", *few, "model.student=assets/tiny-teacher"]
    line = forked(command("evaluate", *arguments), tmp_path / "log").splitlines()[-1]
    values = json.loads(line)
    assert values["model"] == "assets/tiny-teacher"
    assert values["eval/avg@2"] > 0.8 and values["eval/pass@2"] >= values["eval/avg@2"]
    (out,) = (tmp_path / "run" / "evaluations").iterdir()
    assert out.name.startswith("tiny-teacher-")
    assert len((out / "samples" / "eval.jsonl").read_text().splitlines()) == 16


def test_one_engine_over_two_ranks_under_torchrun(
    whole: tuple[Path, str], sets: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "wide"
    torchrun = "torch.distributed.run --nproc-per-node 2 --rdzv-endpoint=localhost:0".split()
    arguments = asked(sets, out, "--engine-tensor", "2", "--limit", "4")[1:]
    arguments[arguments.index("--n")] = "--samples"  # torchrun has options that begin with --n
    finish([sys.executable, "-m", *torchrun, "--rdzv-backend=c10d", *arguments])
    easy = [json.loads(line) for line in (out / "samples" / "easy.jsonl").open()]
    right = sum(row["verdict"] == "correct" for row in easy)
    assert len(easy) == 4 * SAMPLES and right > 0.8 * len(easy)
