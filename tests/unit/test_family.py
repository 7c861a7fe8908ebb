"""Published config.json files, which say less than transformers writes today, read as it does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from scope_megatron.config.family import is_tied, layer_kinds, softcap, windows
from scope_megatron.model.rope import inverse_frequencies

SIZES = {"num_hidden_layers": 14, "hidden_size": 64, "num_attention_heads": 2, "head_dim": 32}
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
    "Mistral": {"architectures": ["MistralForCausalLM"]},
    "Mixtral": {"architectures": ["MixtralForCausalLM"], "rope_theta": 1000000.0},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_defaults_are_those_of_transformers(name: str) -> None:
    hf = PUBLISHED[name] | SIZES
    config = getattr(transformers, f"{name.split()[0]}Config")(**hf)
    assert is_tied(hf) == config.tie_word_embeddings
    written = config.to_dict() | {"architectures": hf["architectures"]}
    assert torch.equal(inverse_frequencies(hf), inverse_frequencies(written))
    if "Gemma" not in name:
        assert windows(hf) == [config.sliding_window] * 14
        return
    assert layer_kinds(hf) == config.layer_types
    for cap in ("attn_logit_softcapping", "final_logit_softcapping"):
        assert softcap(hf, cap) == getattr(config, cap)


def test_two_ropes_are_those_of_transformers() -> None:
    hf = PUBLISHED["Gemma3Text scaled"] | SIZES
    module = transformers.models.gemma3.modeling_gemma3.Gemma3RotaryEmbedding
    rotary = module(transformers.Gemma3TextConfig(**hf))
    expected = [rotary.full_attention_inv_freq, rotary.sliding_attention_inv_freq]
    torch.testing.assert_close(inverse_frequencies(hf), torch.cat(expected))
