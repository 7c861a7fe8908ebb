"""Rotary embeddings: the frequencies and scalings that a ``config.json`` asks for."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from scope_megatron.config.family import LAYER_KINDS, LayerKind, architecture


def has_two_ropes(hf: dict[str, Any]) -> bool:
    """Whether layers with a window have frequencies of their own (Gemma 3)."""
    return architecture(hf) == "Gemma3ForCausalLM"


def rope_settings(hf: dict[str, Any], kind: LayerKind = "full_attention") -> dict[str, Any]:
    """Rope parameters of both styles: ``rope_parameters`` (transformers 5) or the older keys."""
    parameters = dict(hf.get("rope_parameters") or {})
    if has_two_ropes(hf):
        if kind == "sliding_attention" and kind not in parameters:
            return {"rope_type": "default", "rope_theta": hf.get("rope_local_base_freq", 10000.0)}
        parameters = dict(parameters.get(kind) or {"rope_theta": hf.get("rope_theta", 1000000.0)})
    settings = dict(hf.get("rope_scaling") or {}) | parameters
    settings.setdefault("rope_theta", hf.get("rope_theta", 10000.0))
    settings.setdefault("rope_type", settings.pop("type", "default"))
    return settings


def inverse_frequencies(hf: dict[str, Any]) -> Tensor:
    """Rotary inverse frequencies [head_dim / 2] float32, plain or scaled.

    Where layers with a window have others, [head_dim]: first those of the layers without one.
    """
    if not has_two_ropes(hf):
        return _frequencies(hf, rope_settings(hf))
    return torch.cat([_frequencies(hf, rope_settings(hf, kind)) for kind in LAYER_KINDS])


def _frequencies(hf: dict[str, Any], rope: dict[str, Any]) -> Tensor:
    dim = hf.get("head_dim") or hf["hidden_size"] // hf["num_attention_heads"]
    inv = 1.0 / (rope["rope_theta"] ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim))
    kind = rope["rope_type"]
    if kind == "default":
        return inv
    if kind == "linear":
        return inv / rope["factor"]
    if kind == "llama3":
        return _llama3_frequencies(inv, rope)
    if kind == "yarn":
        return _yarn_frequencies(inv, rope)
    raise ValueError(
        f"config.json: rope_type {kind!r} is not supported; "
        "supported: default, linear, llama3, yarn"
    )


def _llama3_frequencies(inv: Tensor, rope: dict[str, Any]) -> Tensor:
    """Long wavelengths are divided by ``factor``, short ones kept, those between interpolated."""
    context = rope["original_max_position_embeddings"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    turns = context * inv / (2 * math.pi)  # rotations over the original context
    keep = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return inv * keep + inv / rope["factor"] * (1.0 - keep)


def _yarn_frequencies(inv: Tensor, rope: dict[str, Any]) -> Tensor:
    """YaRN (arXiv 2309.00071): dimensions that turn often are kept, slow ones divided by
    ``factor``, with a linear ramp over the dimensions between."""
    dim, base = 2 * inv.numel(), rope["rope_theta"]

    def dimension(turns: float) -> float:
        """The (fractional) frequency that turns so often over the original context."""
        context = float(rope["original_max_position_embeddings"])
        return float(dim * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(base)))

    low, high = dimension(rope.get("beta_fast") or 32), dimension(rope.get("beta_slow") or 1)
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0.0, 1.0)
    return inv * (1.0 - ramp) + inv / rope["factor"] * ramp


def yarn_attributes(hf: dict[str, Any]) -> dict[str, float]:
    """What megatron-core's attention reads from its config to scale YaRN's cosines and sines.

    It computes m(s, a) / m(s, b) with m(s, x) = 1 + x ln(s) / 10 for s > 1. The wanted scale is
    ``attention_factor`` where given, else that quotient of ``mscale`` and ``mscale_all_dim``, else
    m(s, 1). Empty for other scalings.
    """
    rope = rope_settings(hf)
    if rope["rope_type"] != "yarn":
        return {}
    factor, given = float(rope["factor"]), rope.get("attention_factor")
    mscale, all_dim = rope.get("mscale"), rope.get("mscale_all_dim")
    if given is not None:
        # m(e, x) is the scale itself for x = 10 (scale - 1), and m(e, 0) = 1
        factor, mscale, all_dim = math.e, 10.0 * (given - 1.0), 0.0
    elif not (mscale and all_dim):
        mscale, all_dim = 1.0, 0.0
    return {
        "yarn_rotary_scaling_factor": factor,
        "yarn_mscale": float(mscale),
        "yarn_mscale_all_dim": float(all_dim),
    }
