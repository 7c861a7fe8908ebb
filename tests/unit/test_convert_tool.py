"""tools/convert_hf_checkpoint.py as a user starts it."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from scope_megatron.convert.workspace import Workspace
from tests.support.convert_tool import ROOT, convert, in_process
from tests.support.tiny_hf import make_tiny_model
from tools import convert_hf_checkpoint as tool


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tool") / "model"
    make_tiny_model("qwen2-bias", directory, torch.bfloat16)
    (directory / "tokenizer.json").write_text("{}")
    return directory


@pytest.mark.slow
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
    assert in_process(*arguments) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {source}/") and message.replace('"', "'") in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


@pytest.fixture(scope="module")
def checkpoint(model: Path) -> Path:
    """Of several files, so that an interruption leaves some of them."""
    out = model.parent / "checkpoint"
    arguments = ["--hf", model, "--out", out, "--to", "megatron", "--shard-size", "1MB"]
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(tool, "_bytes", lambda text: 30_000)
        assert in_process(*arguments) == 0
    return out


def source_of(to: str, model: Path, checkpoint: Path) -> list[object]:
    return ["--hf", model] if to == "megatron" else ["--megatron", checkpoint]


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


@pytest.mark.slow
@pytest.mark.parametrize("to", ["megatron", "hf"])
def test_full_disk_leaves_nothing(to: str, model: Path, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = convert(*source_of(to, model, checkpoint), "--out", out, "--to", to, file_bytes=60_000)
    assert result.returncode == 2, result.stderr
    assert result.stderr.splitlines()[-1].startswith(f"error: cannot write {out}: ")
    assert result.stderr.endswith(": [Errno 27] File too large\n")
    assert list(tmp_path.iterdir()) == []


def test_disk_without_room_is_refused_with_the_figures(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100_000))
    assert in_process("--hf", model, "--out", tmp_path / "out", "--to", "megatron") == 2
    assert f" MB are needed but {tmp_path} has 0.1 MB free" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# The tool with files of 30 kB, killed by itself after so many bytes of output.
KILLED = """
import os, signal, sys, typer
from scope_megatron.convert.workspace import HashedFile
from tools import convert_hf_checkpoint as tool
left, write = int(sys.argv.pop(1)), HashedFile.write
def killing(self, data):
    global left
    left -= memoryview(data).nbytes
    if left < 0:
        self._file.write(b"half")
        self._file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    return write(self, data)
HashedFile.write = killing
tool._bytes = lambda text: 30_000
typer.run(tool.main)
"""


@pytest.mark.slow
@pytest.mark.parametrize("to", ["megatron", "hf"])
def test_killed_conversion_goes_on_and_ends_the_same(
    to: str,
    model: Path,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(tool, "_bytes", lambda text: 30_000)
    source, whole, out = source_of(to, model, checkpoint), tmp_path / "whole", tmp_path / "out"
    assert in_process(*source, "--out", whole, "--to", to) == 0
    for left in random.Random(to).sample(range(40_000, 110_000), 2):
        command = [sys.executable, "-c", KILLED, left, *source, "--out", out, "--to", to]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        killed = subprocess.run(
            list(map(str, command)), env=environment, timeout=100, capture_output=True, text=True
        )
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert not out.exists()
    damaged = json.loads((tmp_path / ".out.tmp" / "progress.json").read_text())["files"]
    assert len(damaged) > 2
    victim = tmp_path / ".out.tmp" / "files" / sorted(damaged)[0]
    victim.write_bytes(victim.read_bytes()[:-1] + b"x")  # its checksum finds it: redone
    capsys.readouterr()
    assert in_process(*source, "--out", out, "--to", to) == 0
    assert "going on: " in capsys.readouterr().out
    assert contents(out) == contents(whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


def interrupt(workspace: Workspace) -> None:
    raise KeyboardInterrupt


def test_other_options_start_over(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    arguments = ["--hf", model, "--out", out, "--to", "megatron"]
    monkeypatch.setattr(Workspace, "commit", interrupt)
    assert in_process(*arguments) == 130
    assert capsys.readouterr().err.endswith("the same command goes on where it was\n")
    monkeypatch.undo()
    assert in_process(*arguments, "--dtype", "float32") == 0
    assert "an unfinished conversion of another source or options" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def first_file(source: Path) -> Path:
    return next(source.glob("*.distcp"))


def without_manifest(change: Callable[[Path], None]) -> Callable[[Path], None]:
    def both(source: Path) -> None:
        (source / "manifest.json").unlink()
        change(source)

    return both


CHECKPOINT_REFUSALS = {  # name: (change of the checkpoint, part of the one line)
    "flipped bit": (lambda source: flip(first_file(source)), "has changed since it was written"),
    "damaged manifest": (
        lambda source: (source / "manifest.json").write_text("{"),
        "is damaged: manifest.json cannot be read; copy it again",
    ),
    "truncated": (
        without_manifest(lambda source: os.truncate(first_file(source), 100)),
        "has 100 bytes, but the checkpoint's index asks for ",
    ),
    "missing file": (
        without_manifest(lambda source: first_file(source).unlink()),
        "is missing although the checkpoint's index names it",
    ),
    "no index": (
        without_manifest(lambda source: (source / ".metadata").unlink()),
        "not a distributed checkpoint ([Errno 2] No such file",
    ),
    "shape": (
        without_manifest(lambda source: replace_config(source, intermediate_size=128)),
        "tensor 'decoder.layers.mlp.linear_fc1.weight' has shape (4, 192, 64), "
        "but config.json asks for (4, 256, 64)",
    ),
    "missing tensor": (
        without_manifest(lambda source: replace_config(source, tie_word_embeddings=False)),
        "tensor 'output_layer.weight' is missing",
    ),
    "left over": (
        without_manifest(lambda source: replace_config(source, architectures=["LlamaForCausalLM"])),
        "tensor 'decoder.layers.self_attention.linear_qkv.bias' is not part of LlamaForCausalLM",
    ),
}


@pytest.mark.parametrize("name", CHECKPOINT_REFUSALS)
def test_checkpoint_refusals(
    name: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, message = CHECKPOINT_REFUSALS[name]
    source = tmp_path / "source"
    shutil.copytree(checkpoint, source)
    change(source)
    assert in_process("--megatron", source, "--out", tmp_path / "out", "--to", "hf") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and message in error
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("shards", [1, 2])
def test_pickles_when_asked_for(shards: int, model: Path, checkpoint: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(model, source, ignore=shutil.ignore_patterns("*.safetensors"))
    tensors = load_file(model / "model.safetensors")
    if shards == 1:
        torch.save(tensors, source / "pytorch_model.bin")
    else:
        files = {name: f"pytorch_model-{len(name) % 2}.bin" for name in tensors}
        for file in set(files.values()):
            torch.save({n: t for n, t in tensors.items() if files[n] == file}, source / file)
        index = source / "pytorch_model.bin.index.json"
        index.write_text(json.dumps({"weight_map": files}))
    arguments = ["--hf", source, "--out", out, "--to", "megatron"]
    assert in_process(*arguments) == 2
    assert in_process(*arguments, "--allow-pickle", "--verify") == 0
    assert in_process("--megatron", out, "--out", tmp_path / "back", "--to", "hf") == 0
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("evil",)


def test_code_in_a_pickle_never_runs(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "source"
    shutil.copytree(model, source, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save({"x": Evil()}, source / "pytorch_model.bin")
    arguments = ["--hf", source, "--out", tmp_path / "out", "--to", "megatron", "--allow-pickle"]
    assert in_process(*arguments) == 2
    assert "pytorch_model.bin: not a complete file of weights (" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
