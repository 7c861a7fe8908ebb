"""Tiny random models of every family, made with transformers' own classes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from scope_megatron.family import FAMILIES

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
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN_FACTOR_ROPE = YARN_ROPE | {"attention_factor": 0.8, "beta_fast": 4.0, "truncate": False}
# eager: transformers' other attentions leave the cap out
GEMMA = {"head_dim": 32, "query_pre_attn_scalar": 24, "sliding_window": 8}
GEMMA |= {"attn_implementation": "eager", "eos_token_id": None, "pad_token_id": None}
NARROW = {"head_dim": 32, "num_experts": 4, "moe_intermediate_size": 48}
NARROW |= {"num_experts_per_tok": 2, "norm_topk_prob": True}
TINY_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"head_dim": 32}),
    "llama-tied": ("Llama", {"head_dim": 32, "tie_word_embeddings": True}),
    "llama3-rope": ("Llama", {"head_dim": 32, "rope_parameters": LLAMA3_ROPE}),
    "qwen2-bias": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3-norms": ("Qwen3", {"head_dim": 32}),
    "mistral": ("Mistral", {"head_dim": 32, "sliding_window": None}),
    "qwen2-yarn": ("Qwen2", {"rope_parameters": YARN_ROPE}),
    "llama-yarn-factor": ("Llama", {"head_dim": 32, "rope_parameters": YARN_FACTOR_ROPE}),
    "qwen3-moe": (
        "Qwen3Moe",
        {"head_dim": 32, "num_experts": 4, "moe_intermediate_size": 64}
        | {"num_experts_per_tok": 2, "norm_topk_prob": True},
    ),
    "qwen3-moe-unnormalised": (
        "Qwen3Moe",
        {"head_dim": 32, "num_experts": 4}
        | {"moe_intermediate_size": 64, "num_experts_per_tok": 2, "norm_topk_prob": False},
    ),
    "mixtral": (
        "Mixtral",
        {"head_dim": 32, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    ),
    "mistral-sliding": ("Mistral", {"head_dim": 32, "sliding_window": 8}),
    "gemma2": (
        "Gemma2",
        GEMMA | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    ),
    "gemma3": (
        "Gemma3",
        GEMMA
        | {"sliding_window_pattern": 3, "rope_theta": 1e5, "rope_local_base_freq": 100.0}
        | {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    ),
    "phi3": (
        "Phi3",
        {"head_dim": 32, "sliding_window": 8, "eos_token_id": None, "pad_token_id": None},
    ),
}
MIXTURES = [
    name for name, (_, settings) in TINY_MODELS.items() if "num_experts_per_tok" in settings
]
ENGINE_ONLY: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2-wide": ("Qwen2", {"hidden_size": 128}),  # heads of 32, the least it takes on a CPU
    "qwen3-moe-narrow": ("Qwen3Moe", NARROW),  # its experts are padded there
}


def architecture_of(model: str) -> str:
    """Hugging Face's name of a tiny model's architecture."""
    return (TINY_MODELS | ENGINE_ONLY)[model][0] + "ForCausalLM"


ONE_PER_FAMILY = {architecture_of(name): name for name in reversed(TINY_MODELS)}  # the first
# one tensor for query, key and value
STACKED = [ONE_PER_FAMILY[name] for name in FAMILIES if len(FAMILIES[name].qkv) == 1]


def make_tiny_model(
    family: str,
    directory: Path,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    layers: int = 4,
) -> PreTrainedModel:
    """Save a model of the family; every weight, norm and bias is random."""
    import transformers

    _, settings = (TINY_MODELS | ENGINE_ONLY)[family]
    shape = {
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.1,
    }
    architecture = getattr(transformers, architecture_of(family))
    torch.manual_seed(sum(family.encode()) + seed)
    model = architecture(architecture.config_class(**(shape | settings)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model = model.to(dtype).eval()
    model.save_pretrained(directory)
    return model
