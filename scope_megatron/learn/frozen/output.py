"""The output weight of a teacher whose body is cut otherwise than the student."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from scope_megatron.parallel import platform


class OutputWeight:
    """[V/tp, H] as the student is cut, on its last stage: an exact divergence meets both models'
    logits column by column.

    ``read`` gives it in host memory. With ``offload`` it is on the device between :meth:`enter` and
    :meth:`leave`, and comes from pinned memory on CUDA, from the files on a CPU.
    """

    def __init__(self, read: Callable[[], Tensor], dtype: torch.dtype, offload: bool) -> None:
        self._read, self._dtype, self._offload = read, dtype, offload
        self._held: Tensor | None = None
        self._pinned: Tensor | None = None
        if offload and platform.has_cuda():
            self._pinned = read().to(dtype).pin_memory()
        if not offload:
            self.enter()

    @property
    def tensor(self) -> Tensor:
        """The weight, on the device."""
        assert self._held is not None, "enter comes before an update"
        return self._held

    def enter(self) -> None:
        """Bring it (at once if it is there)."""
        if self._held is None and self._pinned is not None:
            self._held = self._pinned.to(platform.device(), non_blocking=True)
        elif self._held is None:
            self._held = self._read().to(platform.device(), self._dtype, copy=True)

    def leave(self) -> None:
        """Free the device; without offload it stays."""
        if self._offload:
            self._held = None

    def buffers(self) -> list[Tensor]:
        """What is on the device."""
        return [] if self._held is None else [self._held]
