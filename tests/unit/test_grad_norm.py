"""The gradients' norm where neither Transformer Engine nor Apex has a kernel for it."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from scope_megatron.parallel import platform

SHAPES = [(1,), (3, 5), (1000,), (64, 129), (0,), (7, 1, 2)]


def gradients(dtypes: list[torch.dtype]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        (10.0 ** (i - 2) * torch.randn(shape, generator=generator)).to(dtypes[i % len(dtypes)])
        for i, shape in enumerate(SHAPES)
    ]


@pytest.mark.parametrize(
    "dtypes",
    [[torch.float32], [torch.bfloat16], [torch.float32, torch.bfloat16]],
    ids=["float32", "bfloat16", "both"],
)
def test_its_bits_are_megatrons(dtypes: list[torch.dtype]) -> None:
    """megatron-core's formula, on the CPU."""
    found = gradients(dtypes)
    expected = torch.norm(torch.tensor([[torch.norm(gradient) for gradient in found]]))
    norm, per_tensor = platform.norm_of_all(0, None, [found], False)
    assert per_tensor is None
    assert norm.dtype == torch.float32 and norm.shape == (1,)
    assert norm.item() == float(expected)


def test_no_parameters_gradient_is_asked_for_on_its_own() -> None:
    """megatron-core's waits for the device once per parameter."""
    with FakeTensorMode():  # knows CUDA's rules; reading a number would raise
        on_gpu = [torch.empty(shape, device="cuda") for shape in SHAPES]
        norm, _ = platform.norm_of_all(0, None, [on_gpu], False)
        assert norm.is_cuda and norm.shape == (1,)


def test_clipping_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron.core import utils
    from megatron.core.optimizer import clip_grads, optimizer

    monkeypatch.setattr(optimizer, "clip_grad_by_total_norm_fp32", None)  # put back afterwards
    for impl, taken in ((utils.local_multi_tensor_l2_norm, platform.norm_of_all), (len, len)):
        monkeypatch.setattr(clip_grads, "l2_norm_impl", impl)  # a kernel stays
        platform._adapt_clipping()
        assert clip_grads.l2_norm_impl is taken
