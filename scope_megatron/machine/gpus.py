"""GPUs that the NVIDIA driver lists, those this process may use, and the driver's CUDA version.

Asked of `nvidia-smi` and of the driver's own library: importing torch for it would take seconds,
and would fix what CUDA_VISIBLE_DEVICES is for the rest of the process.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

_ANSWER_S = 30.0  # a driver that is not kept loaded takes seconds to wake
_FIELDS = "name,uuid,memory.total,memory.free,driver_version"


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU; memory in MiB, None where the driver does not tell."""

    name: str
    uuid: str = ""
    total_mib: int | None = None
    free_mib: int | None = None
    driver: str = "?"


def installed_gpus() -> tuple[Gpu, ...]:
    """The GPUs of this machine: as `nvidia-smi` lists them, else one per device file."""
    program = shutil.which("nvidia-smi")
    listed = _listed(program) if program else None
    if listed is not None:
        return listed
    files = [path for path in Path("/dev").glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name)]
    return tuple(Gpu("NVIDIA GPU") for _ in files)


def visible_gpus() -> tuple[Gpu, ...]:
    """Those that CUDA_VISIBLE_DEVICES leaves, in its order."""
    return chosen_by(os.environ.get("CUDA_VISIBLE_DEVICES"), installed_gpus())


def chosen_by(wanted: str | None, gpus: tuple[Gpu, ...]) -> tuple[Gpu, ...]:
    """GPUs of CUDA_VISIBLE_DEVICES as CUDA reads it: numbers or UUIDs up to the first wrong one."""
    if wanted is None:
        return gpus
    chosen: list[Gpu] = []
    for word in (part.strip() for part in wanted.split(",")):
        if word.isdigit():
            found = gpus[int(word) : int(word) + 1]
        elif word.startswith("MIG-"):
            found = (Gpu("MIG instance", word),) if gpus else ()
        else:
            found = tuple(gpu for gpu in gpus if word and gpu.uuid.startswith(word))
        if len(found) != 1:
            break
        chosen += found
    return tuple(chosen)


def driver_cuda() -> tuple[int, int] | None:
    """The newest CUDA (major, minor) that the driver supports; None when it cannot be loaded."""
    version = ctypes.c_int()
    try:
        answer = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return None
    if answer != 0 or version.value <= 0:
        return None
    return version.value // 1000, version.value % 1000 // 10


@functools.cache
def _listed(program: str) -> tuple[Gpu, ...] | None:
    """None when nvidia-smi does not answer, as it does without a driver."""
    command = [program, f"--query-gpu={_FIELDS}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_ANSWER_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode:
        return None
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines()]
    return tuple(
        Gpu(name, uuid, _number(total), _number(free), driver)
        for name, uuid, total, free, driver in (row for row in rows if len(row) == 5)
    )


def _number(text: str) -> int | None:
    return int(text) if text.isdigit() else None  # `[N/A]` where memory is the processor's
