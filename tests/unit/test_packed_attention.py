"""Packed attention asks the device nothing, and FlashAttention is asked for the same numbers."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from itertools import accumulate, pairwise
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from scope_megatron.machine import DETERMINISTIC
from scope_megatron.model import attention
from scope_megatron.model.attention import PackedCausalAttention
from scope_megatron.objective import build
from scope_megatron.parallel import platform
from scope_megatron.parallel.context import ContextShare
from scope_megatron.parallel.packed import PackedSequences

LENGTHS = (1, 9, 6)
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


def by_definition(
    layer: PackedCausalAttention, scale: float, given: list[Tensor] | None = None
) -> Tensor:
    """softmax(scale q k) v of every token over the tokens it sees, one by one."""
    query, key, value = given or inputs()
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


@pytest.fixture(params=["torch 2.11", "torch 2.13"])
def varlen_by_its_manual(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[list[tuple[int, int]]]:
    """torch's varlen_attn as its documentation describes it; the kernels want a GPU.

    2.11 takes grouped queries without being told of them, and knows no word for it.
    """
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
        assert (max_q, max_k) == (int(cu_seq_q.diff().max()), int(cu_seq_k.diff().max()))
        assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
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
            places = torch.arange(len(k) - len(q), len(k))  # the queries are the last of the keys
            ahead = torch.arange(len(k)) - places[:, None]
            scores = scores.masked_fill((ahead > right) | (ahead < -left), -torch.inf)
            out.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v))
        return torch.cat(out)

    def untold(query: Tensor, key: Tensor, *more: Any, scale: Any, window_size: Any) -> Tensor:
        grouped = query.size(1) != key.size(1)
        told: dict[str, Any] = {"scale": scale, "window_size": window_size, "enable_gqa": grouped}
        return varlen_attn(query, key, *more, **told)

    kernel = varlen_attn if request.param == "torch 2.13" else untold
    monkeypatch.setattr(attention, "varlen_attn", kernel)
    monkeypatch.setattr(attention, "_VARLEN", inspect.signature(kernel).parameters)
    with FakeTensorMode():
        assert layer()._takes_varlen(torch.empty(1, 4, 8, dtype=torch.bfloat16, device="cuda"))
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


def test_deterministic_algorithms_take_the_loop() -> None:
    """FlashAttention's backward adds up in the order in which its blocks end."""
    with FakeTensorMode():
        query = torch.empty(1, HEADS, WIDTH, dtype=torch.bfloat16, device="cuda")
        assert layer()._takes_varlen(query)
        with mock.patch.dict(os.environ, DETERMINISTIC):
            platform.follow_determinism()
        try:
            assert not layer()._takes_varlen(query)
        finally:
            torch.use_deterministic_algorithms(False)
        platform.follow_determinism()  # not asked for
        assert not torch.are_deterministic_algorithms_enabled()


def test_a_cpu_and_full_precision_take_the_loop():
    module = layer()
    assert not module._takes_varlen(torch.empty(1, HEADS, WIDTH, dtype=torch.bfloat16))


class Gathered(ContextShare):
    """A rank's share where the keys and values of all ranks are there already."""

    def gather(self, local: Tensor) -> Tensor:
        return local


def share_of(rank: int) -> tuple[PackedSequences, Tensor]:
    """A rank's share of the pack, of two ranks, and its tokens."""
    whole = build([((0,) * length, ()) for length in LENGTHS], range(len(LENGTHS)), 4)
    place: Any = type("Place", (), {"cp_rank": rank, "cp_size": 2, "cp_group": object()})
    share = Gathered.of(whole, place)
    assert share is not None
    return PackedSequences.of(whole, share), share.tokens


def require_ranks_attend_as_one(window: int | None, scale: float | None) -> None:
    """Two ranks' outputs and gradients, against the definition's of the whole pack."""
    module = layer(window, scale)
    ours, theirs = ([x.requires_grad_() for x in inputs()] for _ in range(2))
    expected = by_definition(module, scale or WIDTH**-0.5, theirs)
    upstream = torch.randn(expected.shape, dtype=torch.float64)
    expected.backward(upstream)
    for rank in (0, 1):
        sequences, tokens = share_of(rank)
        output = module(ours[0][tokens], *ours[1:], packed_seq_params=sequences)
        torch.testing.assert_close(output, expected[tokens])
        output.backward(upstream[tokens])
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


@CASES
def test_ranks_that_share_a_pack_attend_as_one(window: int | None, scale: float | None) -> None:
    require_ranks_attend_as_one(window, scale)


@CASES
def test_ranks_that_share_a_pack_attend_as_one_in_one_launch(
    window: int | None, scale: float | None, varlen_by_its_manual: list[tuple[int, int]]
) -> None:
    require_ranks_attend_as_one(window, scale)
    assert len(varlen_by_its_manual) == 2


class Called(TorchDispatchMode):
    """Names of torch's operators, as they are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **kwargs or {})


def test_a_layer_of_a_share_makes_no_tensor_of_the_hosts_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a GPU each would wait for the device; bounds and indices are the pack's, made once."""
    monkeypatch.setattr(attention, "varlen_attn", lambda q, k, v, *_, **__: q * k.sum() * v.sum())
    monkeypatch.setattr(PackedCausalAttention, "_takes_varlen", lambda self, query: True)
    sequences, tokens = share_of(1)
    query, key, value = (x.requires_grad_() for x in inputs())
    own = query.detach()[tokens].requires_grad_()
    module = layer()
    with Called() as called:
        module(own, key, value, packed_seq_params=sequences).sum().backward()
    assert key.grad is not None and "mul" in called.names
    made = {"lift_fresh", "arange", "_to_copy", "_local_scalar_dense"}
    sorts = {"index_put", "index_put_", "_index_put_impl_", "sort"}  # how `key[index]` goes back
    assert not called.names & (made | sorts)
