"""Rotary embeddings: the frequencies and scalings that a ``config.json`` asks for."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scope_megatron.family import ModelShape
from scope_megatron.family.record import ROPE_TYPES
from scope_megatron.family.shape import Rope


def inverse_frequencies(shape: ModelShape) -> Tensor:
    """Rotary inverse frequencies [head_dim / 2] float32, plain or scaled.

    Where layers with a window have others, [head_dim]: first those of the layers without one.
    """
    return torch.cat([_frequencies(shape.head_dim, rope) for rope in shape.ropes])


def _frequencies(dim: int, rope: Rope) -> Tensor:
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
        f"config.json: rope_type {kind!r} is not supported; supported: {', '.join(ROPE_TYPES)}"
    )


def _llama3_frequencies(inv: Tensor, rope: Rope) -> Tensor:
    """Long wavelengths are divided by ``factor``, short ones kept, those between interpolated."""
    context = rope["original_max_position_embeddings"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    turns = context * inv / (2 * math.pi)  # rotations over the original context
    keep = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return inv * keep + inv / rope["factor"] * (1.0 - keep)


def _yarn_frequencies(inv: Tensor, rope: Rope) -> Tensor:
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


def yarn_attributes(shape: ModelShape) -> dict[str, float]:
    """What megatron-core's attention reads from its config to scale YaRN's cosines and sines.

    It computes m(s, a) / m(s, b) with m(s, x) = 1 + x ln(s) / 10 for s > 1. The wanted scale is
    ``attention_factor`` where given, else that quotient of ``mscale`` and ``mscale_all_dim``, else
    m(s, 1). Empty for other scalings.
    """
    rope = shape.ropes[0]
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
