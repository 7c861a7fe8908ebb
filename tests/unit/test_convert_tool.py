"""tools/convert_hf_checkpoint.py as a user starts it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.tiny_hf import make_tiny_model

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "convert_hf_checkpoint.py"


def convert(*arguments: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tool") / "model"
    make_tiny_model("qwen2-bias", directory, torch.bfloat16)
    (directory / "tokenizer.json").write_text("{}")
    return directory


def test_to_megatron_and_back_is_bitwise_equal(model: Path, tmp_path: Path) -> None:
    megatron, back = tmp_path / "megatron", tmp_path / "back"
    result = convert("--hf", model, "--out", megatron, "--to", "megatron")
    assert result.returncode == 0, result.stderr
    result = convert("--megatron", megatron, "--out", back, "--to", "hf")
    assert result.returncode == 0, result.stderr

    before = load_file(model / "model.safetensors")
    after = load_file(back / "model.safetensors")
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        assert tensor.dtype == torch.bfloat16 and torch.equal(after[name], tensor), name
    config = json.loads((back / "config.json").read_text())
    assert config == json.loads((model / "config.json").read_text())
    assert (back / "tokenizer.json").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "megatron"]


def test_output_that_is_not_empty_is_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    result = convert("--hf", model, "--out", tmp_path, "--to", "megatron")
    assert result.returncode == 2
    assert result.stderr.endswith(f"error: {tmp_path} is not empty; choose another directory\n")
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_missing_source_is_refused(model: Path, tmp_path: Path) -> None:
    result = convert("--hf", model, "--out", tmp_path / "out", "--to", "hf")
    assert result.returncode == 2
    assert result.stderr == "error: --to hf reads from --megatron: give it a directory\n"
