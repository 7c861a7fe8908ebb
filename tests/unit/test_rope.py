"""The pack's own rotation equals megatron-core's, bit for bit, without asking for the lengths."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import pytest
import torch
from megatron.core.models.common.embeddings.rope_utils import _apply_rotary_pos_emb_thd
from torch import Tensor

from scope_megatron.family import ModelShape
from scope_megatron.model.rope import (
    TABLE_MULTIPLE,
    PackedRope,
    inverse_frequencies,
    rotate,
    yarn_scale,
)
from scope_megatron.objective import build
from scope_megatron.parallel.packed import PackedSequences

LENGTHS = (3, 1400, 17)  # beyond one step of the table
WIDTH, HEADS = 32, 3
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
ROPES: dict[str, tuple[dict[str, Any], float]] = {  # settings, scale of cosines and sines
    "default": ({}, 1.0),
    "linear": ({"rope_type": "linear", "factor": 4.0}, 1.0),
    "llama3": (LLAMA3, 1.0),
    "yarn": (YARN, 1.1386294361119891),  # 1 + ln(4) / 10
    "yarn-factor": (YARN | {"attention_factor": 0.8}, 0.8),
    "yarn-mscales": (YARN | {"mscale": 2.0, "mscale_all_dim": 1.0}, 1.121751),
}


def shape(rope: dict[str, Any], family: str = "Llama", **more: Any) -> ModelShape:
    hf = {
        "architectures": [f"{family}ForCausalLM"],
        "num_hidden_layers": 1,
        "num_attention_heads": HEADS,
        "hidden_size": HEADS * WIDTH,
        "head_dim": WIDTH,
        "intermediate_size": 8,
        "vocab_size": 8,
        "max_position_embeddings": 8,
        "rope_theta": 10000.0,
        "rope_scaling": rope,
    }
    return ModelShape.of(hf | more)


class OneRank:
    """A context-parallel group of one, as megatron-core's function asks for."""

    def size(self) -> int:
        return 1

    def rank(self) -> int:
        return 0


def by_megatron(x: Tensor, frequencies: Tensor, scale: float) -> Tensor:
    positions = torch.arange(max(LENGTHS), dtype=torch.float32)
    angles = torch.outer(positions, frequencies)
    angles = torch.cat((angles, angles), dim=-1)[:, None, None]
    bounds = torch.tensor([0, *accumulate(LENGTHS)], dtype=torch.int32)
    return _apply_rotary_pos_emb_thd(x, bounds, angles, mscale=scale, cp_group=OneRank())


def packed() -> PackedSequences:
    return PackedSequences.of(build([((0,) * length, ()) for length in LENGTHS], [0, 1, 2]))


def values(dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(sum(LENGTHS), HEADS, WIDTH, generator=generator).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ROPES)
def test_it_equals_megatrons_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    model, scale = shape(ROPES[name][0]), ROPES[name][1]
    assert yarn_scale(model) == pytest.approx(scale, abs=1e-6)
    frequencies = inverse_frequencies(model)
    rope = PackedRope(frequencies, 1, dtype, yarn_scale(model), fused=False)
    pack = packed()
    rotation = rope(rope.get_rotary_seq_len(None, pack), packed_seq=True, cp_group=None)
    assert rotation.shape == (1, 2, sum(LENGTHS), WIDTH)
    x = values(dtype)
    got = rotate(x[:, None], rotation[0])[:, 0]
    assert torch.equal(got, by_megatron(x, frequencies, yarn_scale(model)))


def test_two_kinds_of_layers_have_a_rotation_each() -> None:
    model = shape(
        {}, "Gemma3", query_pre_attn_scalar=WIDTH, sliding_window=8, rope_local_base_freq=100.0
    )
    frequencies = inverse_frequencies(model)
    rope = PackedRope(frequencies, 2, torch.float32, 1.0, fused=False)
    rotations = rope(packed())
    x = values(torch.float32)
    for kind, own in enumerate(frequencies.chunk(2)):
        got = rotate(x[:, None], rotations[kind])[:, 0]
        assert torch.equal(got, by_megatron(x, own, 1.0))
    assert not torch.equal(rotations[0], rotations[1])


def test_one_table_grows_by_steps() -> None:
    rope = PackedRope(inverse_frequencies(shape({})), 1, torch.float32, 1.0, fused=False)
    first = rope.table(5)
    assert first.shape == (1, 2, TABLE_MULTIPLE, WIDTH)
    assert rope.table(TABLE_MULTIPLE) is first
    longer = rope.table(TABLE_MULTIPLE + 1)
    assert longer.size(-2) == 2 * TABLE_MULTIPLE
    assert torch.equal(longer[:, :, :TABLE_MULTIPLE], first)
    assert rope.table(5) is longer


def test_the_fused_kernel_is_given_megatrons_angles() -> None:
    frequencies = inverse_frequencies(shape({}))
    rope = PackedRope(frequencies, 1, torch.bfloat16, 1.0, fused=True)
    angles = rope(packed())
    assert (angles.shape, angles.dtype) == ((2048, 1, 1, WIDTH), torch.float32)
    expected = torch.outer(torch.arange(2048, dtype=torch.float32), frequencies)
    assert torch.equal(angles[:, 0, 0], torch.cat((expected, expected), dim=-1))


def test_gradients_turn_back() -> None:
    """The transpose of a rotation is its inverse, so the gradient of |x|^2 / 2 comes back as x."""
    rope = PackedRope(inverse_frequencies(shape({})), 1, torch.float64, 1.0, fused=False)
    x = values(torch.float64)[:, None].requires_grad_()
    turned = rotate(x, rope(packed())[0])
    (gradient,) = torch.autograd.grad(turned, x, turned.detach())
    torch.testing.assert_close(gradient, x.detach(), rtol=0, atol=1e-6)
