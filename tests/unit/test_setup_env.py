"""For which device tools/setup_env.sh makes an environment."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "tools/setup_env.sh"
CARD = "NVIDIA H100 80GB HBM3"


@pytest.mark.parametrize(
    ("listed", "device", "code", "said"),
    [
        ([], None, 0, "cpu (nvidia-smi lists no GPU)"),
        (["No devices were found"], None, 0, "cpu (nvidia-smi lists no GPU)"),
        ([f"580.65.06, {CARD}"] * 8, None, 0, f"cuda ({CARD}, driver 580.65.06)"),
        (
            [f"535.104, {CARD}"],
            None,
            0,
            f"cpu ({CARD}, but its driver 535.104 is older than 580; DEVICE=cuda insists)",
        ),
        ([f"535.104, {CARD}"], "cuda", 0, "cuda (DEVICE=cuda)"),
        ([f"580.65.06, {CARD}"], "cpu", 0, "cpu (DEVICE=cpu)"),
        ([], "gpu", 1, "setup_env: FAILED: DEVICE is 'gpu'; set it to cpu or cuda"),
    ],
)
def test_device(
    tmp_path: Path, listed: list[str], device: str | None, code: int, said: str
) -> None:
    program = tmp_path / "nvidia-smi"
    lines = "".join(f"echo '{line}'\n" for line in listed)
    program.write_text(f"#!/bin/sh\n{lines or 'exit 9'}\n")
    program.chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "DEVICE": device or ""}
    done = subprocess.run(
        ["bash", SCRIPT, "--device"], env=env, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == code
    assert (done.stdout or done.stderr).strip() == said
