"""A directory with two tiny models, data and a configuration, and ways to spoil it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

RUN_YAML = """\
output_dir: run
model: {student: student, teacher: teacher}
data: {train: train.jsonl, eval: eval.jsonl, max_prompt_tokens: 100}
rollout: {prompts_per_step: 4, max_response_tokens: 300}
optimizer: {lr: 5e-5}
train: {steps: 3, microbatch_tokens: 400}
"""
TOKENS = 40  # of the tokenizer; the student's embedding is padded to 64 rows, the teacher's to 128


def edit_json(path: str, **changes: object) -> None:
    """Change keys of a JSON file; a value of None removes the key."""
    values = json.loads(Path(path).read_text()) | changes
    kept = {key: value for key, value in values.items() if value is not None}
    Path(path).write_text(json.dumps(kept))


def write_tokenizer(directory: str, tokens: int = TOKENS) -> None:
    vocab = {f"t{index}": index for index in range(tokens - 1)}
    added = [{"id": tokens - 1, "content": "<end>", "special": True}]
    values = {"model": {"type": "BPE", "vocab": vocab, "merges": []}, "added_tokens": added}
    Path(directory, "tokenizer.json").write_text(json.dumps(values))


def write_model(directory: str, *, hidden: int, heads: int, vocab: int) -> None:
    Path(directory).mkdir()
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_size": hidden,
        "intermediate_size": 128,
        "num_attention_heads": heads,
        "num_key_value_heads": 2,
        "num_hidden_layers": 4,
        "vocab_size": vocab,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
    }
    Path(directory, "config.json").write_text(json.dumps(config))
    weights = {"model.norm.weight": np.ones(hidden, np.float32)}
    save_file(weights, f"{directory}/model.safetensors")
    write_tokenizer(directory)


def make_run(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Fill the directory and make it the current one; rules are those of a machine without GPU."""
    monkeypatch.chdir(directory)
    monkeypatch.setitem(sys.modules, "wandb", None)  # not installed, for who looks
    Path("bin").mkdir()
    Path("bin/nvidia-smi").write_text("#!/bin/sh\nexit 0\n")  # no GPU is listed
    Path("bin/nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # a name that is no path is looked for in the cache
    monkeypatch.setenv("HF_HOME", "/no/hf-home")
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "CUDA_VISIBLE_DEVICES", "SCOPE_DEVICE"):
        monkeypatch.delenv(name, raising=False)
    write_model("student", hidden=64, heads=2, vocab=64)
    write_model("teacher", hidden=128, heads=4, vocab=128)
    Path("train.jsonl").write_text('{"prompt": "1+1", "answer": "2"}\n')
    Path("eval.jsonl").write_text('{"prompt": "1+2", "answer": "3"}\n')
    Path("run.yaml").write_text(RUN_YAML)
    return directory


def replace(old: str, new: str) -> Callable[[], None]:
    """Edit run.yaml."""
    assert old in RUN_YAML
    return lambda: Path("run.yaml").write_text(RUN_YAML.replace(old, new)) and None


def append(text: str) -> Callable[[], None]:
    return lambda: Path("run.yaml").write_text(RUN_YAML + text) and None


def student(**changes: object) -> Callable[[], None]:
    return lambda: edit_json("student/config.json", **changes)


def teacher(**changes: object) -> Callable[[], None]:
    return lambda: edit_json("teacher/config.json", **changes)


def write(path: str, content: str | bytes) -> Callable[[], None]:
    def do() -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        data = content.encode() if isinstance(content, str) else content
        Path(path).write_bytes(data)

    return do


def remove(path: str) -> Callable[[], None]:
    return lambda: Path(path).unlink()


def truncate(path: str, by: int) -> Callable[[], None]:
    return lambda: Path(path).write_bytes(Path(path).read_bytes()[:-by]) and None


def index_of(shard: str, *tensors: str) -> Callable[[], None]:
    """A safetensors index that puts the tensors into one shard."""
    index = {"weight_map": dict.fromkeys(tensors, shard)}
    return write("student/model.safetensors.index.json", json.dumps(index))


def quantize() -> None:
    save_file({"w": np.zeros(4, np.int8)}, "student/model.safetensors")


def sentencepiece(*directories: str) -> Callable[[], None]:
    """These directories have a tokenizer.model, each another, and no tokenizer.json."""

    def do() -> None:
        for directory in directories:
            Path(directory, "tokenizer.json").unlink()
            Path(directory, "tokenizer.model").write_text(f"pieces of {directory}")

    return do


def rename_token() -> None:
    values = json.loads(Path("teacher/tokenizer.json").read_text())
    values["model"]["vocab"]["other"] = values["model"]["vocab"].pop("t7")
    Path("teacher/tokenizer.json").write_text(json.dumps(values))


def leave() -> None:
    """Change no file."""
