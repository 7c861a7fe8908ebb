"""Tiny random models of every family, made with transformers' own classes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

VOCAB = 104  # no multiple of Megatron's padding
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"head_dim": 32}),
    "llama-tied": ("Llama", {"head_dim": 16, "tie_word_embeddings": True}),
    "llama3-rope": ("Llama", {"head_dim": 32, "rope_parameters": LLAMA3_ROPE}),
    "qwen2-bias": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3-norms": ("Qwen3", {"head_dim": 32}),
}


def make_tiny_model(
    family: str, directory: Path, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """Save a model of the family; every weight, norm and bias is random."""
    import transformers

    architecture, settings = FAMILIES[family]
    config = getattr(transformers, f"{architecture}Config")(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.1,
        **settings,
    )
    torch.manual_seed(sum(family.encode()))
    model = getattr(transformers, f"{architecture}ForCausalLM")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model = model.to(dtype).eval()
    model.save_pretrained(directory)
    return model
