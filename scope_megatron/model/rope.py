"""Rotary embeddings: frequencies and scalings of a ``config.json``, and how a pack is turned."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scope_megatron.family import ModelShape
from scope_megatron.family.record import ROPE_TYPES
from scope_megatron.family.shape import Rope
from scope_megatron.parallel.packed import PackedSequences

TABLE_MULTIPLE = 1024  # rows of a table of positions: it is made anew only every so many


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


def yarn_scale(shape: ModelShape) -> float:
    """Factor of YaRN on cosines and sines; 1 for other scalings.

    ``attention_factor`` where given, else m(mscale) / m(mscale_all_dim) where both are there, else
    m(1), with m(x) = 1 + x ln(factor) / 10 for a factor above 1.
    """
    rope = shape.ropes[0]
    if rope["rope_type"] != "yarn":
        return 1.0
    factor, given = float(rope["factor"]), rope.get("attention_factor")
    mscale, all_dim = rope.get("mscale"), rope.get("mscale_all_dim")

    def m(x: float) -> float:
        return 1.0 + 0.1 * x * math.log(factor) if factor > 1 else 1.0

    if given is not None:
        return float(given)
    return m(mscale) / m(all_dim) if mscale and all_dim else m(1.0)


class PackedRope(torch.nn.Module):
    """Rotations of a pack's tokens, in the place of megatron-core's ``RotaryEmbedding``.

    megatron-core's own cuts a table of frequencies by sequence in every layer, for which it reads
    the sequences' lengths from the device four times. Here cosines and sines are looked up by
    ``position_ids``, once per pack, for all layers.

    ``frequencies`` [d / 2], or [d] for two kinds of layers (see :func:`inverse_frequencies`);
    ``scale`` multiplies cosines and sines. ``fused``: give Transformer Engine's kernel the table of
    angles that it asks for.
    """

    def __init__(
        self, frequencies: Tensor, kinds: int, dtype: torch.dtype, scale: float, fused: bool
    ) -> None:
        super().__init__()
        self.inv_freq = frequencies.unflatten(0, (kinds, -1))  # float32: no buffer, so never cast
        self.dtype, self.scale, self.fused = dtype, scale, fused
        self._table = torch.empty(0)

    def get_rotary_seq_len(self, *args: object) -> PackedSequences:
        """The pack: megatron-core gives to :meth:`forward` what it is told here."""
        pack = args[-1]
        assert isinstance(pack, PackedSequences)
        return pack

    def forward(self, pack: PackedSequences, **_: object) -> Tensor:
        """[kinds, 2, T, d] cosines and sines of the pack's tokens, in the parameters' type.

        ``fused``: [S, 1, 1, d] angles of the positions up to at least the longest sequence's.
        """
        assert pack.position_ids is not None
        if self.fused:
            return self.table(pack.max_seqlen_q)[: _round_up(pack.max_seqlen_q)]
        return self.table(pack.max_seqlen_q)[:, :, pack.position_ids]

    def table(self, length: int) -> Tensor:
        """Of all positions up to ``length`` and more: one table, which grows with need."""
        rows = self._table.size(0 if self.fused else -2) if self._table.numel() else 0
        if rows < length:
            self._table = self._of_positions(_round_up(length))
        return self._table

    def _of_positions(self, count: int) -> Tensor:
        positions = torch.arange(count, device=self.inv_freq.device, dtype=torch.float32)
        angles = torch.stack([torch.outer(positions, kind) for kind in self.inv_freq])
        angles = torch.cat((angles, angles), dim=-1)
        if self.fused:
            return angles[0][:, None, None]
        both = torch.stack((angles.cos() * self.scale, angles.sin() * self.scale), dim=1)
        return both.to(self.dtype)


def _round_up(length: int) -> int:
    return -(-length // TABLE_MULTIPLE) * TABLE_MULTIPLE


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """x [T, 1, heads, d] with each of its tokens turned by ``rotation`` [2, T, d]."""
    cos, sin = rotation[:, :, None, None]
    half = x.size(-1) // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos + turned * sin
