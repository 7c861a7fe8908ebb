"""A run that starts in seconds: two ranks, supervised on the answers of the shipped problems.

No engine and no verifier; what it shares with every run is the launcher, the ranks' collectives,
checkpoints and the watchdog.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]


def write_data(directory: Path, rows: int = 64) -> Path:
    lines = (ROOT / "assets/arithmetic/train.jsonl").read_text().splitlines()[:rows]
    path = directory / "kd.jsonl"
    with path.open("w") as file:
        for row in map(json.loads, lines):
            file.write(json.dumps(row | {"response": row["answer"]}) + "\n")
    return path


def settings(directory: Path, *overrides: str) -> list[str]:
    return [
        "configs/quickstart.yaml",
        f"output_dir={directory / 'run'}",
        f"data.train={write_data(directory)}",
        "algorithm.name=kd",
        "rollout=null",
        "train.batch_sequences=16",
        "train.microbatch_tokens=512",
        "train.steps=100000",
        "checkpoint.every=0",
        "checkpoint.export_hf=false",
        "evaluation.every=0",
        "evaluation.before=false",
        "evaluation.after=false",
        "logging.tensorboard=false",
        *overrides,
    ]


def start(directory: Path, *overrides: str, program: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """``program``: what starts the ranks instead of `scope-megatron` itself."""
    return launch(settings(directory, *overrides), {}, program)


def launch(
    arguments: list[str], environment: dict[str, str], program: tuple[str, ...] = ()
) -> subprocess.Popen[str]:
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | environment
    return subprocess.Popen(
        [*(program or (sys.executable,)), "-m", "scope_megatron", "train", *arguments],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def rows(directory: Path) -> list[dict[str, Any]]:
    path = directory / "run" / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_for_step(process: subprocess.Popen[str], directory: Path, step: int) -> None:
    deadline = time.monotonic() + 90
    while not any(row["step"] >= step for row in rows(directory)):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"step {step} was not reached in 90 s"
        time.sleep(0.1)


def rank_process(process: subprocess.Popen[str], rank: int) -> psutil.Process:
    for child in psutil.Process(process.pid).children(recursive=True):
        if child.environ().get("RANK") == str(rank):
            return child
    raise AssertionError(f"no process of rank {rank}")


def finish(process: subprocess.Popen[str], within_s: float) -> tuple[int, str, float]:
    """(exit code, output, seconds it took); no process of the run may be left."""
    family = psutil.Process(process.pid).children(recursive=True)
    begin = time.monotonic()
    try:
        output, _ = process.communicate(timeout=within_s)
    except subprocess.TimeoutExpired:
        for one in family:
            one.kill()
        process.kill()
        raise AssertionError(
            f"still running after {within_s} s: {process.communicate()[0]}"
        ) from None
    seconds = time.monotonic() - begin
    _, alive = psutil.wait_procs(family, timeout=5)
    assert not alive, f"left behind: {alive}"
    return process.returncode, output, seconds
