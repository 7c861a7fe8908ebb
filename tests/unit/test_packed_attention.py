"""Packed attention asks the device nothing, and FlashAttention is asked for the same numbers."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate, pairwise

import pytest
import torch
from torch import Tensor

from scope_megatron.model import attention
from scope_megatron.model.attention import PackedCausalAttention
from scope_megatron.parallel.packed import PackedSequences

LENGTHS = (1, 9, 4)
HEADS, GROUPS, WIDTH = 4, 2, 8


def layer(window: int | None = None, scale: float | None = None) -> PackedCausalAttention:
    from megatron.core.transformer.enums import AttnMaskType
    from megatron.core.transformer.transformer_config import TransformerConfig

    config = TransformerConfig(num_layers=1, hidden_size=HEADS * WIDTH, num_attention_heads=HEADS)
    return PackedCausalAttention(
        config, 1, AttnMaskType.causal, "self", softmax_scale=scale, windows=[window]
    )


def inputs() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    total = sum(LENGTHS)
    return [
        torch.randn(total, heads, WIDTH, generator=generator, dtype=torch.float64)
        for heads in (HEADS, GROUPS, GROUPS)
    ]


def pack(device: str) -> PackedSequences:
    bounds = [0, *accumulate(LENGTHS)]
    cu_seqlens = torch.tensor(bounds, dtype=torch.int32, device=device)
    return PackedSequences(
        qkv_format="thd",
        cu_seqlens_q=cu_seqlens,
        cu_seqlens_kv=cu_seqlens,
        max_seqlen_q=max(LENGTHS),
        max_seqlen_kv=max(LENGTHS),
        bounds=bounds,
    )


def by_definition(layer: PackedCausalAttention, scale: float) -> Tensor:
    """softmax(scale q k) v of every token over the tokens it sees, one by one."""
    query, key, value = inputs()
    rows = []
    for start, end in pairwise([0, *accumulate(LENGTHS)]):
        for t in range(start, end):
            first = start if layer.window is None else max(start, t - layer.window + 1)
            for head in range(HEADS):
                group = head * GROUPS // HEADS
                scores = scale * key[first : t + 1, group] @ query[t, head]
                rows.append(scores.softmax(0) @ value[first : t + 1, group])
    return torch.stack(rows).reshape(sum(LENGTHS), HEADS * WIDTH)


CASES = pytest.mark.parametrize(
    ("window", "scale"), [(None, None), (3, None), (1, 0.7), (100, 0.2)], ids=str
)


@CASES
def test_the_loop_reads_no_tensor_to_find_the_sequences(
    window: int | None, scale: float | None
) -> None:
    module = layer(window, scale)
    # a tensor on the meta device has no numbers: reading one would raise
    output = module(*inputs(), packed_seq_params=pack("meta"))
    torch.testing.assert_close(output, by_definition(module, scale or WIDTH**-0.5))


@pytest.fixture
def varlen_by_its_manual(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, int]]]:
    """torch's varlen_attn as its documentation describes it; the kernels want a GPU."""
    windows: list[tuple[int, int]] = []

    def varlen_attn(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_seq_q: Tensor,
        cu_seq_k: Tensor,
        max_q: int,
        max_k: int,
        *,
        scale: float | None = None,
        window_size: tuple[int, int] = (-1, -1),
        enable_gqa: bool = False,
    ) -> Tensor:
        assert (max_q, max_k) == (max(LENGTHS), max(LENGTHS)) and cu_seq_q.dtype == torch.int32
        assert enable_gqa == (query.size(1) != key.size(1))
        windows.append(window_size)
        left, right = (10**6 if side < 0 else side for side in window_size)
        out = []
        for (start, end), (kstart, kend) in zip(
            pairwise(cu_seq_q.tolist()), pairwise(cu_seq_k.tolist()), strict=True
        ):
            q, k, v = query[start:end], key[kstart:kend], value[kstart:kend]
            k, v = (x.repeat_interleave(q.size(1) // k.size(1), 1) for x in (k, v))
            scores = torch.einsum("qhd,khd->hqk", q, k) * (scale or q.size(-1) ** -0.5)
            ahead = torch.arange(kend - kstart) - torch.arange(end - start)[:, None]
            scores = scores.masked_fill((ahead > right) | (ahead < -left), -torch.inf)
            out.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v))
        return torch.cat(out)

    monkeypatch.setattr(attention, "varlen_attn", varlen_attn)
    monkeypatch.setattr(PackedCausalAttention, "_takes_varlen", lambda self, query: True)
    yield windows


@CASES
def test_one_launch_sees_what_the_loop_sees(
    window: int | None, scale: float | None, varlen_by_its_manual: list[tuple[int, int]]
) -> None:
    module = layer(window, scale)
    output = module(*inputs(), packed_seq_params=pack("cpu"))
    torch.testing.assert_close(output, by_definition(module, scale or WIDTH**-0.5))
    assert varlen_by_its_manual == [(-1 if window is None else window - 1, 0)]


def test_a_cpu_and_full_precision_take_the_loop():
    module = layer()
    assert not module._takes_varlen(torch.empty(1, HEADS, WIDTH, dtype=torch.bfloat16))
