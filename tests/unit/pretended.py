"""A machine that is not there: what is asked of the real one, put before it on the real paths.

`nvidia-smi` on PATH, the driver's libcuda.so.1 for the loader, and packages by their metadata and
their `version.py`; for processes of their own, which import none of these packages.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

H100 = "NVIDIA H100 80GB HBM3"
TOTAL_MIB = 81559


def pretend(
    root: Path,
    *,
    gpus: int,
    torch: str | None = "13.0",
    driver: int | None = 13000,
    vllm: str = "0.32.0",
    free_mib: int = 80000,
    name: str = H100,
) -> dict[str, str]:
    """The environment of a process that finds such a machine.

    ``torch``: the CUDA it is built for; ``driver``: cuDriverGetVersion's number, None: no library.
    """
    for folder in ("bin", "lib", "packages"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    rows = [f"{name}, GPU-{i}a, {TOTAL_MIB}, {free_mib}, 580.65" for i in range(gpus)]
    program = root / "bin/nvidia-smi"
    program.write_text("#!/bin/sh\n" + "".join(f"echo '{row}'\n" for row in rows))
    program.chmod(0o755)
    if driver is not None:
        _build_driver(root / "lib", driver)
    package(root / "packages", "torch", "2.13.0" if torch else "2.13.0+cpu")
    (root / "packages/torch/version.py").write_text(f"cuda: Optional[str] = {torch!r}\n")
    package(root / "packages", "vllm", vllm)
    env = {k: v for k, v in os.environ.items() if k not in ("CUDA_VISIBLE_DEVICES", "SCOPE_DEVICE")}
    paths = [str(root / "packages"), env.get("PYTHONPATH", "")]
    return env | {
        "PATH": f"{root / 'bin'}:{env['PATH']}",
        "LD_LIBRARY_PATH": str(root / "lib"),
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
    }


def package(root: Path, name: str, version: str, source: str = "raise SystemExit('imported')\n"):
    """A distribution whose import ends the process, unless another ``source`` is given."""
    (root / name).mkdir(exist_ok=True)
    (root / name / "__init__.py").write_text(source)
    info = root / f"{name}-{version}.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def _build_driver(folder: Path, version: int) -> None:
    if (compiler := shutil.which("cc")) is None:
        pytest.skip("no C compiler to build the driver's library with")
    source = f"int cuDriverGetVersion(int *version) {{ *version = {version}; return 0; }}"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-xc", "-", "-o", folder / "libcuda.so.1"],
        input=source.encode(),
        check=True,
        timeout=60,
    )
