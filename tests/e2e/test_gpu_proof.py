"""Every part of the GPU proof at toy size on this CPU: the program must not be what fails there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch.code import ROOT
from tests.support.harness import ENGINES_TOO
from tools.proof.registry import PARTS

# the parts of one half; all others are the other's
HALF = ("engine", "transfer", "step", "quickstart", "layouts")


@pytest.mark.slow
@pytest.mark.timeout(900)  # a minute and a half on two idle cores
def test_the_rehearsal_runs_every_part(tmp_path: Path) -> None:
    """Two at a time: a part is a process or two."""
    names = [part.name for part in PARTS]
    halves = [[n for n in names if n in HALF], [n for n in names if n not in HALF]]
    started = [start(tmp_path / str(number), names) for number, names in enumerate(halves)]
    try:
        for process in started:
            process.wait(timeout=840)
    finally:
        for process in started:
            process.kill()
    parts = []
    for number, process in enumerate(started):
        folder = tmp_path / str(number)
        assert process.returncode == 0, (folder / "said").read_text()[-8000:]
        parts += json.loads((folder / "proof.json").read_text())["parts"]
    outcomes = {part["part"]: (part["outcome"], part["reason"]) for part in parts}
    assert outcomes == {part.name: ("passed", "") for part in PARTS}
    for part in parts:
        assert any(entry["kind"] == "check" for entry in part["entries"]) or (
            part["part"] == "transfer"  # figures alone
        )


def start(out: Path, names: list[str]) -> subprocess.Popen[str]:
    only = [word for name in names for word in ("--only", name)]
    out.mkdir()
    return subprocess.Popen(
        [sys.executable, "tools/gpu_proof.py", "--rehearse", "--out", str(out), *only],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", ENGINES_TOO: ""},
        stdout=(out / "said").open("w"),
        stderr=subprocess.STDOUT,
        text=True,
    )
