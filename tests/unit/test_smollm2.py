"""The example of a real pretrained model: its rows, its verifier, its cut, its configuration."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from scope_megatron.config import load_config
from tools.make_smollm2 import names_answer, prune, questions

ROOT = Path(__file__).resolve().parents[2]


def test_rows_are_the_same_at_every_call_and_none_is_evaluated_that_was_trained_on() -> None:
    train, later = questions()
    assert questions() == (train, later)
    assert not {prompt for prompt, _ in train} & {prompt for prompt, _ in later}


@pytest.mark.parametrize(
    ("response", "answer", "right"),
    [
        ("The capital is Paris.", "Paris", True),
        ("Parisians like it", "Paris", False),
        ("7 plus 5 is 12", "12", True),
        ("it is 112", "12", False),
    ],
)
def test_verifier(response: str, answer: str, right: bool) -> None:
    assert names_answer(response, answer) is right


def test_cut_model_is_the_model_without_a_block_of_layers() -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=30, vocab_size=32, **sizes))
    layers = list(model.model.layers)
    prune(model, 26)
    assert list(model.model.layers) == layers[:16] + layers[20:]
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == list(range(26))
    assert model(torch.tensor([[1, 2, 3]])).logits.shape == (1, 3, 32)


def test_configuration_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = tmp_path / "runs/smollm2"
    for name in ("student", "teacher"):
        shutil.copytree(ROOT / f"assets/tiny-{name}", models / name)
    for name in ("train", "eval"):
        shutil.copy(ROOT / f"assets/arithmetic/{name}.jsonl", models / f"{name}.jsonl")
    monkeypatch.chdir(tmp_path)
    config = load_config(ROOT / "configs/examples/smollm2.yaml")
    assert config.algorithm.name == "opd"
    assert config.verifier.custom == "tools.make_smollm2:names_answer"
