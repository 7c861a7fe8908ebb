"""tools/convert_hf_checkpoint.py as a user starts it."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from safetensors.torch import load_file, save_file

from tests.tiny_hf import make_tiny_model
from tools import convert_hf_checkpoint as tool

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "convert_hf_checkpoint.py"


def convert(*arguments: object, file_bytes: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run the tool; with ``file_bytes`` no file may grow beyond that (as on a full disk)."""

    def limit() -> None:
        if file_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))

    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=280, env=environment, preexec_fn=limit
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tool") / "model"
    make_tiny_model("qwen2-bias", directory, torch.bfloat16)
    (directory / "tokenizer.json").write_text("{}")
    return directory


def test_to_megatron_and_back_is_bitwise_equal(model: Path, tmp_path: Path) -> None:
    megatron, back = tmp_path / "megatron", tmp_path / "back"
    result = convert("--hf", model, "--out", megatron, "--to", "megatron", "--verify")
    assert result.returncode == 0, result.stderr
    assert "verified 50 tensors, sha256 " in result.stdout
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


def test_dry_run_needs_no_weights(tmp_path: Path) -> None:
    llama = {  # Llama 2 7B
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "vocab_size": 32000,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "torch_dtype": "bfloat16",
    }
    (tmp_path / "config.json").write_text(json.dumps(llama))
    result = convert("--hf", tmp_path, "--out", tmp_path / "out", "--to", "megatron", "--dry-run")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    qkv = "decoder.layers.{layer}.self_attention.linear_qkv.weight"
    assert f"    32 x {qkv}  [12288, 4096]  3072.0 MiB" in lines
    assert lines[-2:] == [
        "LlamaForCausalLM: 195 tensors, 6,738,415,616 parameters, bfloat16",
        "12.55 GiB to write",
    ]
    assert not (tmp_path / "out").exists()


def replace_config(source: Path, **values: object) -> None:
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | values))


def write_index(source: Path, name: str, file: str) -> None:
    index = {"weight_map": {name: file}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))


def edit_weights(source: Path, change: dict[str, torch.Tensor]) -> None:
    save_file(load_file(source / "model.safetensors") | change, source / "model.safetensors")


def truncate(source: Path) -> None:
    os.truncate(source / "model.safetensors", 20_000)


def pickle_only(source: Path) -> None:
    (source / "model.safetensors").rename(source / "pytorch_model.bin")


REFUSALS = {  # name: (change of the source, the one line)
    "truncated": (truncate, "model.safetensors: not a complete safetensors file ("),
    "missing shard": (
        lambda source: write_index(source, "x", "model-2.safetensors"),
        "model.safetensors.index.json: tensor 'x' is in model-2.safetensors, which does not exist",
    ),
    "absent tensor": (
        lambda source: write_index(source, "x", "model.safetensors"),
        "model.safetensors.index.json: tensor 'x' is not in model.safetensors",
    ),
    "unknown architecture": (
        lambda source: replace_config(source, architectures=["MambaForCausalLM"]),
        'config.json has architecture "MambaForCausalLM"; use one of LlamaForCausalLM, ',
    ),
    "left over": (
        lambda source: edit_weights(source, {"extra": torch.ones(2)}),
        "model.safetensors: tensor 'extra' is not part of Qwen2ForCausalLM",
    ),
    "shape": (
        lambda source: edit_weights(source, {"model.norm.weight": torch.ones(63)}),
        "model.safetensors: tensor 'model.norm.weight' has shape (63,), "
        "but config.json asks for (64,)",
    ),
    "pickle": (pickle_only, "pytorch_model.bin is a pickle, which runs code when it is opened; "),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(
    name: str,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In this process: seven starts of the tool would take a minute."""
    change, message = REFUSALS[name]
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(model, source)
    change(source)
    arguments = ["--hf", str(source), "--out", str(out), "--to", "megatron"]
    app = typer.Typer()
    app.command()(tool.main)
    with pytest.raises(SystemExit) as exit_:
        app(arguments)
    assert exit_.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {source}/") and message.replace('"', "'") in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


@pytest.mark.parametrize("to", ["megatron", "hf"])
def test_full_disk_leaves_nothing(to: str, model: Path, tmp_path: Path) -> None:
    source = {"--hf": model}
    if to == "hf":
        source = {"--megatron": tmp_path / "megatron"}
        made = convert("--hf", model, "--out", tmp_path / "megatron", "--to", "megatron")
        assert made.returncode == 0, made.stderr
    before = sorted(path.name for path in tmp_path.iterdir())
    result = convert(
        *next(iter(source.items())), "--out", tmp_path / "out", "--to", to, file_bytes=60_000
    )
    assert result.returncode == 2, result.stderr
    assert result.stderr.splitlines()[-1].startswith(f"error: cannot write {tmp_path / 'out'}: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == before
