"""Every part of the GPU proof at toy size on this CPU: the program must not be what fails there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch.code import ROOT
from tools.proof.registry import PARTS


@pytest.mark.slow
@pytest.mark.timeout(900)  # 2.5 minutes on two idle cores
def test_the_rehearsal_runs_every_part(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "tools/gpu_proof.py", "--rehearse", "--out", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=840,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    proof = json.loads((tmp_path / "proof.json").read_text())
    outcomes = {part["part"]: (part["outcome"], part["reason"]) for part in proof["parts"]}
    assert outcomes == {part.name: ("passed", "") for part in PARTS}
    for part in proof["parts"]:
        assert any(entry["kind"] == "check" for entry in part["entries"]) or (
            part["part"] == "transfer"  # figures alone
        )
