"""Host memory for snapshots: one piece for all tensors, which a GPU copies to at full speed."""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Mapping

import torch
from torch import Tensor

from scope_megatron.parallel import platform

ALIGNMENT = 256  # bytes between the starts of tensors: vector loads, and any dtype


class Arena:
    """Memory that stays from one snapshot to the next.

    It is page-locked as a whole on CUDA machines. torch's own page-locked tensors take memory in
    powers of two, up to twice of what they hold.
    """

    def __init__(self) -> None:
        self._held: dict[Hashable, Tensor] = {}

    def like(self, wanted: Mapping[Hashable, Tensor]) -> dict[Hashable, Tensor]:
        """A tensor in host memory of the shape and type of each; for a known key the same again."""
        new = {key: tensor for key, tensor in wanted.items() if key not in self._held}
        if new:
            self._held |= self._cut(new)
        return {key: self._held[key] for key in wanted}

    def _cut(self, wanted: Mapping[Hashable, Tensor]) -> dict[Hashable, Tensor]:
        """One block, cut into a tensor for each."""
        starts, end = {}, 0
        for key, tensor in wanted.items():
            starts[key] = end
            end += -(-tensor.numel() * tensor.element_size() // ALIGNMENT) * ALIGNMENT
        block = torch.empty(end, dtype=torch.uint8)
        if platform.has_cuda() and end:
            self._lock_pages(block)
        out = {}
        for key, tensor in wanted.items():
            size = tensor.numel() * tensor.element_size()
            part = block[starts[key] : starts[key] + size]
            out[key] = part.view(tensor.dtype).view(tensor.shape)
        return out

    def _lock_pages(self, block: Tensor) -> None:
        """Where the system refuses (its limit of locked memory), copies are slower and right."""
        runtime, address = torch.cuda.cudart(), block.data_ptr()
        if int(runtime.cudaHostRegister(address, block.numel(), 0)) == 0:
            # before the memory is given back; not as the process ends, when CUDA may be gone
            weakref.finalize(self, runtime.cudaHostUnregister, address).atexit = False
