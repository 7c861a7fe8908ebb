"""A pack on its way to the device and back: who waits for the copy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from scope_megatron.objective import build
from scope_megatron.types import PackedBatch


class Copies(TorchDispatchMode):
    """Records (device it goes to, whether the caller goes on before the copy is done)."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, bool]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default:
            self.seen.append((str(kwargs["device"]), bool(kwargs.get("non_blocking"))))
        return func(*args, **kwargs)


def tensors(pack: PackedBatch) -> list[torch.Tensor]:
    return [value for value in vars(pack).values() if isinstance(value, torch.Tensor)]


def test_only_a_copy_to_the_gpu_is_not_waited_for():
    """A copy to the host without waiting gives memory that is still being written."""
    real = build([((1, 2), (3,))], [0])
    with FakeTensorMode() as fake:  # knows CUDA's rules without a device
        pack = replace(
            real,
            **{
                name: fake.from_tensor(value)
                for name, value in vars(real).items()
                if isinstance(value, torch.Tensor)
            },
        )
        with Copies() as there:
            moved = pack.to(torch.device("cuda", 0))
        with Copies() as back:
            returned = moved.to(torch.device("cpu"))
    assert len(there.seen) == len(back.seen) == len(tensors(pack)) > 0
    assert set(there.seen) == {("cuda:0", True)}
    assert set(back.seen) == {("cpu", False)}
    assert all(tensor.device.type == "cpu" for tensor in tensors(returned))


def test_the_bounds_stay_on_the_host():
    pack = build([((1, 2), (3,)), ((4,), (5, 6, 7))], [1, 0], pad_multiple=4)
    assert pack.bounds == pack.cu_seqlens.tolist() == [0, 4, 7, 8]
    assert pack.to(torch.device("meta")).bounds is pack.bounds
