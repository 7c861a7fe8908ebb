"""Tests and GPUs: hidden without ``-m gpu``; the engine's are skipped where it cannot run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import wants_gpu
from tests.unit.pretended import package

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("expression", "seen"),
    [("", False), ("gpu", True), ("not gpu", False), ("gpu and not slow", True), ("slow", False)],
)
def test_gpus_are_hidden_from_other_tests(expression: str, seen: bool) -> None:
    assert wants_gpu(expression) is seen


def test_this_process_and_its_children_see_none() -> None:
    assert (os.environ["SCOPE_DEVICE"], os.environ["CUDA_VISIBLE_DEVICES"]) == ("cpu", "")


@pytest.mark.slow
def test_engine_tests_are_skipped_with_a_vllm_for_gpus(tmp_path: Path) -> None:
    package(tmp_path, "vllm", "0.32.0")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/e2e"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout
    last = done.stdout.strip().splitlines()[-1]
    assert " skipped" in last and "passed" not in last
    assert "vLLM 0.32.0 is no CPU build; see docs/gpu.md" in done.stdout
