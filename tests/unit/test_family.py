"""The families' table: every record is tested and documented, and reads a config.json as
transformers does, published files included, which say less than transformers writes today."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from scope_megatron.family import FAMILIES, ModelShape
from scope_megatron.model.rope import inverse_frequencies
from tests.support.tiny_hf import ONE_PER_FAMILY

MODELS_PAGE = Path(__file__).parents[2] / "docs" / "models.md"
SIZES = {"num_hidden_layers": 14, "hidden_size": 64, "num_attention_heads": 2, "head_dim": 32}
SIZES |= {"intermediate_size": 96, "vocab_size": 104, "max_position_embeddings": 131072}
SIZES |= {"query_pre_attn_scalar": 24, "num_local_experts": 4, "moe_intermediate_size": 48}
PUBLISHED: dict[str, dict[str, Any]] = {
    "Gemma2": {"architectures": ["Gemma2ForCausalLM"], "sliding_window": 4096}
    | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "rope_theta": 10000.0},
    "Gemma2 without caps": {"architectures": ["Gemma2ForCausalLM"], "sliding_window": 4096},
    "Gemma3Text": {"architectures": ["Gemma3ForCausalLM"], "sliding_window": 512}
    | {"rope_local_base_freq": 10000, "rope_theta": 1000000, "rope_scaling": None}
    | {"sliding_window_pattern": 6},
    "Gemma3Text scaled": {"architectures": ["Gemma3ForCausalLM"], "sliding_window": 1024}
    | {"rope_local_base_freq": 5000, "rope_theta": 1000000}
    | {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}},
}
PUBLISHED |= {  # and every family with nothing but sizes
    family.name: {"architectures": [family.name]}
    | ({"sliding_window": 512} if "sliding_window" in family.required else {})
    for family in FAMILIES.values()
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_defaults_are_those_of_transformers(name: str) -> None:
    hf = PUBLISHED[name] | SIZES
    config = getattr(transformers, hf["architectures"][0]).config_class(**hf)
    shape = ModelShape.of(hf)
    written = ModelShape.of(config.to_dict() | {"architectures": hf["architectures"]})
    assert torch.equal(inverse_frequencies(shape), inverse_frequencies(written))
    assert (shape.tied, shape.norm_eps) == (config.tie_word_embeddings, config.rms_norm_eps)
    if shape.experts:
        assert shape.experts_per_token == config.num_experts_per_tok
        assert shape.experts_normalized == getattr(config, "norm_topk_prob", True)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * 14
    window = getattr(config, "sliding_window", None)
    windows = [window if kind == "sliding_attention" else None for kind in kinds]
    assert shape.windows == tuple(windows)
    assert shape.attention_cap == getattr(config, "attn_logit_softcapping", None)
    assert shape.logits_cap == getattr(config, "final_logit_softcapping", None)


def test_two_ropes_are_those_of_transformers() -> None:
    hf = PUBLISHED["Gemma3Text scaled"] | SIZES
    shape = ModelShape.of(hf)
    module = transformers.models.gemma3.modeling_gemma3.Gemma3RotaryEmbedding
    rotary = module(transformers.Gemma3TextConfig(**hf))
    expected = [rotary.full_attention_inv_freq, rotary.sliding_attention_inv_freq]
    torch.testing.assert_close(inverse_frequencies(shape), torch.cat(expected))


def test_every_family_has_a_tiny_model() -> None:
    """The mapping's, logits', round-trip and engine tests go through the tiny models."""
    assert set(ONE_PER_FAMILY) == set(FAMILIES)


def test_every_family_has_its_row_in_the_documentation() -> None:
    rows = re.findall(
        r"^\| (.+) \(`(\w+ForCausalLM)`\) \|", MODELS_PAGE.read_text(), flags=re.MULTILINE
    )
    assert rows == [(family.title, family.name) for family in FAMILIES.values()]


def test_no_other_module_names_an_architecture() -> None:
    package = Path(__file__).parents[2] / "scope_megatron"
    names = [name.removesuffix("ForCausalLM") for name in FAMILIES]
    naming = [
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if re.search(rf"\b({'|'.join(names)})(ForCausalLM)?\b", _code(path.read_text()))
    ]
    # the planner's well-known models are contents of config.json files, architecture included
    assert sorted(naming) == ["family/table.py", "instruments/plan/facts/known.py"]


def _code(source: str) -> str:
    """A module's string constants and names, without comments and docstrings."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, documented) and ast.get_docstring(node):
            node.body.pop(0)
    return ast.unparse(tree)
