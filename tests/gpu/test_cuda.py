"""The same checks on CUDA and NCCL. Run them with `pytest -m gpu` where there are NVIDIA GPUs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.distributed.test_step_layouts import OBJECTIVES, one_update, reference, settings
from tests.support.harness import need_gpus, run_distributed_test
from tests.support.tiny_hf import make_tiny_model

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


DENSE_LAYOUTS = ["one", "one-small-microbatches", "tensor", "pipeline", "data"]


@pytest.mark.parametrize(
    ("family", "layout"),
    [
        *(("qwen2-bias", layout) for layout in DENSE_LAYOUTS),
        ("gemma2", "one"),
        ("gemma3", "tensor-sequence"),
        ("qwen3-moe", "one"),
        ("qwen3-moe", "expert-data"),
        ("qwen3-moe", "expert-tensor"),
    ],
)
def test_update_equals_transformers_on_nccl(tmp_path: Path, family: str, layout: str) -> None:
    """float32 on the device against transformers in float64, as on the CPU."""
    world = 1 if layout.startswith("one") else 2
    need_gpus(world)
    make_tiny_model(family, tmp_path / "student")
    make_tiny_model("llama", tmp_path / "teacher")
    args = (world, tmp_path, [layout], list(OBJECTIVES))
    ours = run_distributed_test(one_update, *args, backend="nccl")[0]
    for name, changes in OBJECTIVES.items():
        expected = reference(tmp_path, settings(tmp_path, changes))
        assert ours[layout, name]["loss"] == pytest.approx(expected["loss"], rel=1e-4)
        assert ours[layout, name]["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-3)


@pytest.mark.timeout(900)  # vLLM compiles: minutes when its cache is cold
def test_the_quickstart_learns_on_one_gpu(tmp_path: Path) -> None:
    """Megatron and vLLM share the device; bfloat16; the engine sleeps while the trainer works."""
    command = [sys.executable, "-m", "scope_megatron", "train", "configs/quickstart.yaml"]
    overrides = [
        f"output_dir={tmp_path}",
        "train.steps=20",
    ]
    result = subprocess.run(
        [*command, *overrides],
        cwd=ROOT,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "0"},
        capture_output=True,
        text=True,
        timeout=840,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    before, after = [row["eval/avg@8"] for row in rows if "eval/avg@8" in row]
    assert after > before + 0.1
