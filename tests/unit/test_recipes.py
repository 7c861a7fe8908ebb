"""The recipes pass `check` on their models' published sizes, and fit on the GPUs they name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from scope_megatron import cli
from scope_megatron.config import load_config, validating_for
from scope_megatron.instruments.plan.facts.known import KNOWN
from tests.support.config_run import write_tokenizer

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "configs/recipes").glob("*.yaml"))
# config.json of google/gemma-3-1b-pt and -it on the Hugging Face hub
GEMMA3_1B: dict[str, Any] = {
    "architectures": ["Gemma3ForCausalLM"],
    "hidden_size": 1152,
    "intermediate_size": 6912,
    "num_hidden_layers": 26,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "vocab_size": 262144,
    "max_position_embeddings": 32768,
    "query_pre_attn_scalar": 256,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "tie_word_embeddings": True,
}
SHAPES = KNOWN | {"google/gemma-3-1b-pt": GEMMA3_1B, "google/gemma-3-1b-it": GEMMA3_1B}


def models_of(path: Path) -> dict[str, str]:
    """student and, where there is one, teacher: the Hub names in the file."""
    found = re.findall(r"^  (student|teacher): (\S+)$", path.read_text(), re.M)
    return {key: name for key, name in found}


def gpus_of(path: Path) -> int:
    """As the command in the file's first lines says."""
    found = re.search(r"--gpus (\d+)", path.read_text())
    assert found, path
    return int(found[1])


def write_model(directory: Path, shape: dict[str, Any]) -> None:
    """A directory that holds the sizes, and next to nothing else."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(shape))
    weights = {"model.norm.weight": np.ones(shape["hidden_size"], np.float32)}
    if not shape["tie_word_embeddings"]:
        weights["lm_head.weight"] = np.ones(1, np.float32)
    save_file(weights, directory / "model.safetensors")
    write_tokenizer(str(directory))
    template = {"chat_template": "{{ messages }}{% if enable_thinking %}{% endif %}"}
    (directory / "tokenizer_config.json").write_text(json.dumps(template))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_passes_check(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = ["data.train=train.jsonl", "data.eval=eval.jsonl"]
    for key, name in models_of(path).items():
        write_model(tmp_path / key, SHAPES[name])
        settings.append(f"model.{key}={key}")
    row = {"prompt": "1+1", "answer": "2", "response": "2"}
    for name in ("train", "eval"):
        Path(f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    gpus = gpus_of(path)
    with validating_for(gpus=min(gpus, 8), nodes=-(-gpus // 8)):
        config = load_config(path, settings)
    assert config.world_size == gpus, "the layout fills the GPUs that the file names"
    assert config.output_dir.name == path.stem
    assert config.platform.device == "cuda" and config.model.dtype == "bfloat16"


@pytest.mark.parametrize(
    "path", [p for p in RECIPES if models_of(p)["student"] in KNOWN], ids=lambda path: path.stem
)
def test_recipe_fits(path: Path) -> None:
    result = CliRunner().invoke(cli.app, ["plan", str(path), "--gpus", str(gpus_of(path))])
    assert result.exit_code == 0, result.output
    assert re.search(r"^fits: [\d.]+ GiB of", result.stdout, re.M), result.stdout


def test_published_settings_are_there() -> None:
    assert {path.stem for path in RECIPES} >= {"r1_distill_1p5b", "qwen3_1p7b", "qwen3_8b"}
    algorithms = [re.search(r"^  name: (\w+)", path.read_text(), re.M) for path in RECIPES]
    assert {found[1] for found in algorithms if found} == {"opd", "grpo", "kd"}
