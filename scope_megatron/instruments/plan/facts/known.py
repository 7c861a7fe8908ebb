"""Sizes of well-known models, as their published config.json files have them.

The source of every entry is the ``config.json`` of the repository of that name on the Hugging Face
hub; only what decides memory and arithmetic is kept. The parameters that follow are compared with
the published totals in tests/unit/plan/test_shapes.py.
"""

from __future__ import annotations

from typing import Any

HUB = "config.json of the repository of this name on the Hugging Face hub"
MADE_UP = (
    "made up for planning at this size, no published model: an architecture that can be built here "
    "(Qwen 3 MoE) with 384 experts of width 2048"
)
_QWEN3 = {"head_dim": 128, "vocab_size": 151936, "max_position_embeddings": 40960}
_LLAMA3 = {"vocab_size": 128256, "max_position_embeddings": 131072, "rope_theta": 500000.0}


def _model(
    architecture: str, hidden: int, ffn: int, layers: int, heads: int, groups: int, **rest: Any
) -> dict[str, Any]:
    return {
        "architectures": [architecture],
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "tie_word_embeddings": False,
        **rest,
    }


def _qwen2(
    hidden: int, ffn: int, layers: int, heads: int, groups: int, vocab: int = 152064, **rest: Any
) -> dict[str, Any]:
    rest = {"vocab_size": vocab, "max_position_embeddings": 131072} | rest
    return _model("Qwen2ForCausalLM", hidden, ffn, layers, heads, groups, **rest)


def _qwen3(
    hidden: int, ffn: int, layers: int, heads: int, groups: int = 8, **rest: Any
) -> dict[str, Any]:
    return _model("Qwen3ForCausalLM", hidden, ffn, layers, heads, groups, **(_QWEN3 | rest))


def _qwen3_moe(
    hidden: int, ffn: int, layers: int, heads: int, groups: int, experts: int = 128
) -> dict[str, Any]:
    rest = {"num_experts": experts, "moe_intermediate_size": ffn, "num_experts_per_tok": 8}
    rest |= {"norm_topk_prob": True, "decoder_sparse_step": 1}
    return _model("Qwen3MoeForCausalLM", hidden, ffn, layers, heads, groups, **(_QWEN3 | rest))


def _llama(
    hidden: int, ffn: int, layers: int, heads: int, groups: int = 8, **rest: Any
) -> dict[str, Any]:
    return _model("LlamaForCausalLM", hidden, ffn, layers, heads, groups, **(_LLAMA3 | rest))


def _mixtral(
    hidden: int, ffn: int, layers: int, heads: int, vocab: int, positions: int
) -> dict[str, Any]:
    rest = {"num_local_experts": 8, "num_experts_per_tok": 2, "vocab_size": vocab}
    rest |= {"max_position_embeddings": positions}
    return _model("MixtralForCausalLM", hidden, ffn, layers, heads, 8, **rest)


def _gemma3(hidden: int, ffn: int, layers: int, heads: int, groups: int) -> dict[str, Any]:
    rest: dict[str, Any] = {"head_dim": 256, "vocab_size": 262144, "max_position_embeddings": 32768}
    rest |= {"query_pre_attn_scalar": 256, "sliding_window": 512, "sliding_window_pattern": 6}
    rest |= {"rope_theta": 1000000.0, "rope_local_base_freq": 10000.0, "tie_word_embeddings": True}
    rest |= {"hidden_activation": "gelu_pytorch_tanh"}
    return _model("Gemma3ForCausalLM", hidden, ffn, layers, heads, groups, **rest)


KNOWN: dict[str, dict[str, Any]] = {
    "Qwen/Qwen2.5-0.5B": _qwen2(896, 4864, 24, 14, 2, 151936, tie_word_embeddings=True),
    "Qwen/Qwen2.5-1.5B": _qwen2(1536, 8960, 28, 12, 2, 151936, tie_word_embeddings=True),
    "Qwen/Qwen2.5-3B": _qwen2(2048, 11008, 36, 16, 2, 151936, tie_word_embeddings=True),
    "Qwen/Qwen2.5-7B": _qwen2(3584, 18944, 28, 28, 4),
    "Qwen/Qwen2.5-14B": _qwen2(5120, 13824, 48, 40, 8),
    "Qwen/Qwen2.5-32B": _qwen2(5120, 27648, 64, 40, 8),
    "Qwen/Qwen2.5-72B": _qwen2(8192, 29568, 80, 64, 8),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": _qwen2(1536, 8960, 28, 12, 2, 151936),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": _qwen2(3584, 18944, 28, 28, 4),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B": _qwen2(5120, 27648, 64, 40, 8),
    "Qwen/Qwen3-0.6B": _qwen3(1024, 3072, 28, 16, tie_word_embeddings=True),
    "Qwen/Qwen3-1.7B": _qwen3(2048, 6144, 28, 16, tie_word_embeddings=True),
    "Qwen/Qwen3-4B": _qwen3(2560, 9728, 36, 32, tie_word_embeddings=True),
    "Qwen/Qwen3-8B": _qwen3(4096, 12288, 36, 32),
    "Qwen/Qwen3-14B": _qwen3(5120, 17408, 40, 40),
    "Qwen/Qwen3-32B": _qwen3(5120, 25600, 64, 64),
    "Qwen/Qwen3-30B-A3B": _qwen3_moe(2048, 768, 48, 32, 4),
    "Qwen/Qwen3-235B-A22B": _qwen3_moe(4096, 1536, 94, 64, 4),
    "google/gemma-3-1b-pt": _gemma3(1152, 6912, 26, 4, 1),
    "google/gemma-3-1b-it": _gemma3(1152, 6912, 26, 4, 1),
    "meta-llama/Llama-3.2-1B": _llama(2048, 8192, 16, 32, tie_word_embeddings=True),
    "meta-llama/Llama-3.2-3B": _llama(3072, 8192, 28, 24, tie_word_embeddings=True),
    "meta-llama/Llama-3.1-8B": _llama(4096, 14336, 32, 32),
    "meta-llama/Llama-3.1-70B": _llama(8192, 28672, 80, 64),
    "meta-llama/Llama-3.1-405B": _llama(16384, 53248, 126, 128),
    "mistralai/Mixtral-8x7B-v0.1": _mixtral(4096, 14336, 32, 32, 32000, 32768),
    "mistralai/Mixtral-8x22B-v0.1": _mixtral(6144, 16384, 56, 48, 32768, 65536),
    "example/moe-1T": _qwen3_moe(7168, 2048, 60, 64, 8, experts=384),
}


def source_of(name: str) -> str:
    """Where an entry's sizes are from."""
    return MADE_UP if name.startswith("example/") else HUB


def known_name(text: str) -> str | None:
    """The entry that ``text`` is the name of, or whose last part a path or name ends in."""
    last = text.partition("@")[0].rstrip("/").rpartition("/")[2].lower()
    whole = {name.lower(): name for name in KNOWN}
    parts = {name.lower().rpartition("/")[2]: name for name in KNOWN}
    return whole.get(text.partition("@")[0].lower()) or parts.get(last)
