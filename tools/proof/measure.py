"""Times, rates and memory, on a GPU or in a rehearsal on the CPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

# dense bfloat16 FLOP/s as the makers state them; other chips are measured against their own GEMM
NOMINAL = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L4": 121e12,
}


def proof_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def median_seconds(work: Callable[[], object], rounds: int, warm: int = 1) -> float:
    """Median time of ``work``, all that it queued on the device included."""
    times = []
    for number in range(warm + rounds):
        synchronize()
        start = time.perf_counter()
        result = work()
        synchronize()
        if number >= warm:
            times.append(time.perf_counter() - start)
        del result
    return statistics.median(times)


def copy_rate(nbytes: int, rounds: int = 10) -> float:
    """Bytes a second that a copy on the device reads and writes together."""
    source = torch.empty(nbytes, dtype=torch.uint8, device=proof_device())
    target = torch.empty_like(source)
    return 2 * nbytes / median_seconds(lambda: target.copy_(source), rounds, warm=3)


def product_rate(size: int, dtype: torch.dtype, rounds: int = 10) -> float:
    """FLOP/s of a square matrix product."""
    a = torch.randn(size, size, device=proof_device()).to(dtype)
    b = torch.randn(size, size, device=proof_device()).to(dtype)
    out = torch.empty_like(a)
    return 2.0 * size**3 / median_seconds(lambda: torch.mm(a, b, out=out), rounds, warm=3)


def nominal_rate() -> float | None:
    """The chip's stated bfloat16 FLOP/s; None for a chip that is not in the table."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((rate for chip, rate in NOMINAL.items() if chip in name), None)


def allocated() -> int:
    """Bytes of tensors on the GPU; 0 on a CPU."""
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0


def in_use() -> int:
    """Bytes of the GPU that anyone holds; 0 on a CPU."""
    if not torch.cuda.is_available():
        return 0
    free, total = torch.cuda.mem_get_info()
    return int(total - free)
