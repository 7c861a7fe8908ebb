"""The proof's runner with parts that fail, die and hang; its list, its pages, its arithmetic."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from launch.code import ROOT
from tools.gpu_proof import parts_named
from tools.proof import machine, models, page, runner
from tools.proof.parts import kernels, scorer
from tools.proof.record import Proof, Reading, Result
from tools.proof.registry import PARTS, ProofPart


def part(function: str, **more: object) -> ProofPart:
    return ProofPart(function, "a test", f"tests.unit.proof_parts:{function}", **more)  # type: ignore[arg-type]


def run(tmp_path: Path, *parts: ProofPart, rehearse: bool = True) -> dict[str, Result]:
    results = runner.run_parts(parts, tmp_path, rehearse=rehearse, say=lambda line: None)
    return {result.part: result for result in results}


@pytest.mark.timeout(120)
def test_a_part_that_fails_dies_or_hangs_ends_no_other(tmp_path: Path) -> None:
    parts = (part("wrong"), part("raises"), part("dies"), part("hangs", limit_s=8), part("good"))
    results = run(tmp_path, *parts)
    outcomes = {name: result.outcome for name, result in results.items()}
    assert outcomes == {
        "wrong": "failed",
        "raises": "crashed",
        "dies": "crashed",
        "hangs": "timed out",
        "good": "passed",
    }
    assert results["wrong"].reason == "error: nan, at most 0.001"
    assert results["raises"].reason == "ZeroDivisionError: division by zero"
    assert "ended with 7" in results["dies"].reason and "last words" in results["dies"].reason
    assert "after 8 s" in results["hangs"].reason
    assert [entry.value for entry in results["good"].entries] == [2.0, "toy"]
    child = int((tmp_path / "hangs" / "child").read_text())
    deadline = time.monotonic() + 10
    while _alive(child) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _alive(child)


def _alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.timeout(120)
def test_parts_of_one_process(tmp_path: Path) -> None:
    """What one builds the next has; what could not be built is not tried again."""
    shared = [part("good", process="one"), part("asks_again", process="one")]
    assert {r.outcome for r in run(tmp_path / "a", *shared).values()} == {"passed"}
    shared = [part("raises", process="one"), part("asks_again", process="one")]
    results = run(tmp_path / "b", *shared)
    assert results["asks_again"].outcome == "crashed"
    reason = "RuntimeError: the thing was not built: ZeroDivisionError: division by zero"
    assert results["asks_again"].reason == reason
    shared = [part("dies", process="one"), part("good", process="one")]
    results = run(tmp_path / "c", *shared)
    assert results["good"].reason == "the process had ended before it"
    assert all(result.wrong for result in results.values())


@pytest.mark.timeout(60)
def test_what_is_missing_is_named_and_is_not_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "gpus", lambda: 1)
    monkeypatch.setattr(machine, "missing", lambda need: f"{need} is not installed")
    two = part("good", gpus=2)
    needy = part("wrong", needs=("vllm",))
    parts = [two, needy, part("slow_target")]
    results = runner.run_parts(
        parts, tmp_path, rehearse=False, say=lambda line: None, missing=machine.missing
    )
    assert [r.outcome for r in results] == ["left out", "left out", "passed"]
    assert [r.reason for r in results] == [
        "needs 2 GPUs, 1 found",
        "vllm is not installed",
        "",
    ]
    assert not any(r.wrong for r in results)
    assert [e.name for e in results[2].missed] == ["speed"]
    text = page.markdown("2026-01-01", {"chip": "X"}, results, rehearse=False)
    assert "| good | left out | 0 | needs 2 GPUs, 1 found |" in text
    assert "missed: speed 0.5 (at least 0.8)" in text
    assert "| slow_target | speed | 0.5 | at least 0.8 | missed |" in text


def test_pages(tmp_path: Path) -> None:
    entries = [Reading("check", "a|b", 2e-3, "s", "at most 0.001", False)]
    results = [Result("one", "failed", 1.5, entries, "a|b: 0.002 s, at most 0.001")]
    data, text = page.write_proof(tmp_path, "2026-01-01", {"chip": "X"}, results, rehearse=True)
    raw = json.loads(data.read_text())
    assert raw["wrong"] is True and raw["machine"] == {"chip": "X"}
    assert Result.of(raw["parts"][0]) == results[0]
    assert "| one | a/b | 0.002 s | at most 0.001 | WRONG |" in text.read_text()


def test_targets_of_a_rehearsal_are_figures(tmp_path: Path) -> None:
    proof = Proof(rehearse=True, folder=tmp_path)
    proof.target("speed", 0.1, at_least=0.8)
    assert [entry.kind for entry in proof.entries] == ["figure"]
    assert proof.failures == []


def test_every_part_is_there_and_fits_its_time() -> None:
    names = [p.name for p in PARTS]
    assert len(set(names)) == len(names)
    for one in PARTS:
        module, function = one.place.split(":")
        source = (ROOT / module.replace(".", "/")).with_suffix(".py").read_text(encoding="utf-8")
        assert f"def {function}(proof: Proof) -> None:" in source
        assert 0 < one.limit_s <= 480
        assert set(one.needs + one.needs_rehearsing) <= set(machine.NEEDS)
    assert [p.name for p in parts_named(["step", "kernels"])] == ["kernels", "step"]
    with pytest.raises(ValueError, match="no part motor; there are kernels"):
        parts_named(["motor"])


@pytest.mark.parametrize("error", [0.0, 0.02])
def test_a_wrong_gradient_of_a_kernel_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: float
) -> None:
    """The torch path in the kernels' place: it holds all limits, and not with 2% added."""
    original = kernels.ours

    def ours(*args: Any) -> tuple[Tensor, Tensor]:
        value, gradient = original(*args, kernel="torch")
        return value, gradient * (1 + error)

    monkeypatch.setattr(kernels, "ours", ours)
    proof = Proof(rehearse=True, folder=tmp_path)
    kernels.kernels(proof)
    assert len(proof.entries) == 18
    assert {e.name.partition(": ")[2] for e in proof.failures} == (
        {"gradient, units of the allowed error"} if error else set()
    )
    assert len(proof.failures) == (6 if error else 0)


def test_values_cut_in_the_wrong_place_are_found() -> None:
    assert scorer._gap(torch.zeros(3), torch.zeros(3)) == 0.0
    assert scorer._gap(torch.zeros(3), torch.zeros(2)) == float("inf")


def test_sizes_of_models() -> None:
    assert models.HALF_B.parameters == 494_032_768  # Qwen2.5-0.5B's
    assert models.ONE_AND_A_HALF_B.parameters == 1_543_714_304  # Qwen2.5-1.5B's
    shape = models.Qwen2Shape(8, 16, 1, 2, 1, 32)
    # products of a token: q, k, v, o (8x8, 8x4, 8x4, 8x8), MLP 3 x 8x16, head 8x32
    products = 2 * (64 + 32 + 32 + 64 + 384 + 256)
    attention = 2 * 4 * 8 * 2 * 10 * 10 / 8  # two products of 10 x 10 x 4 for 2 heads, half masked
    assert shape.forward_flops([10]) == pytest.approx(10 * products + attention)


def test_the_command_refuses_what_cannot_be(tmp_path: Path) -> None:
    def command(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "tools/gpu_proof.py", *arguments],
            cwd=ROOT,
            env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    done = command("--only", "motor", "--rehearse")
    assert done.returncode == 2 and done.stderr.startswith("error: --only: no part motor")
    done = command("--out", str(tmp_path))
    assert done.returncode == 2 and "no GPU that torch can use" in done.stderr
    listed = command("--list")
    assert listed.returncode == 0
    assert all(f"| {p.name} | {p.shows} |" in listed.stdout for p in PARTS)
