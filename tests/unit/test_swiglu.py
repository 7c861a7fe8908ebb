"""megatron-core's one-kernel SwiGLU computes what its separate operations do."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from megatron.core.fusions.fused_bias_swiglu import bias_swiglu_impl
from torch.nn import functional

from scope_megatron.model.build import fuses_activation
from scope_megatron.parallel import platform
from tests.unit.test_rope import shape


@pytest.fixture(autouse=True)
def eager() -> Iterator[None]:
    """The formulas themselves; compiling them needs half a minute and a compiler."""
    with torch.compiler.set_stance("force_eager"):
        yield


def test_values_and_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    x = 4 * torch.randn(7, 1, 12, generator=generator, dtype=torch.float64)
    upstream = torch.randn(7, 1, 6, generator=generator, dtype=torch.float64)
    fused, plain = x.clone().requires_grad_(), x.clone().requires_grad_()
    got = bias_swiglu_impl(fused, None)
    gate, linear = plain.chunk(2, dim=-1)
    expected = functional.silu(gate) * (linear + 0.0)
    assert torch.equal(got, expected)
    got.backward(upstream)
    expected.backward(upstream)
    assert fused.grad is not None
    torch.testing.assert_close(fused.grad, plain.grad, rtol=1e-13, atol=1e-13)


def test_who_is_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    qwen, gemma = shape({}), shape({}, "Gemma2", query_pre_attn_scalar=1, sliding_window=8)
    assert not fuses_activation(qwen), "a CPU compiles nothing"
    monkeypatch.setattr(platform, "has_cuda", lambda: True)
    assert fuses_activation(qwen) and not fuses_activation(gemma)
