"""The machine that settings are validated for: with GPUs or without."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

_elsewhere: ContextVar[bool | None] = ContextVar("elsewhere", default=None)


@contextmanager
def validating_for(gpus: bool) -> Iterator[None]:
    """Inside, settings are checked for machines with (without) GPUs, whatever this one has."""
    token = _elsewhere.set(gpus)
    try:
        yield
    finally:
        _elsewhere.reset(token)


def cuda_visible() -> bool:
    """Whether the run's machine has an NVIDIA GPU for it, found without importing torch."""
    if (told := _elsewhere.get()) is not None:
        return told
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return False
    return Path("/dev/nvidia0").exists() or Path("/proc/driver/nvidia").exists()
