"""Peak of live tensor memory, for devices that keep no such count themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from scope_megatron.parallel.memory import TensorPeak


def peak_memory(work: Callable[[], Any]) -> int:
    """Most bytes that tensors made by ``work`` hold at once, its results included."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with TensorPeak() as tracker:
        work()
    return tracker.peak
