"""The pages' commands are typed, in a copy of this repository, those that a machine like this can.

    pytest -m study tests/e2e/test_doc_commands.py     # about ten minutes on two cores

The reader's own files and models are stood for by small ones of this repository (`READERS`), and
runs but for the quickstart are short (`SHORT`). That every other command is taken by its program is
shown by tests/unit/test_doc_commands.py.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.doc_commands import ROOT, DocCommand, commands

# what a command needs that is not here, by what it begins with or has in it
ELSEWHERE = {
    r"^make test$": "long: CI runs it",
    r"^make env$": "a package index: CI runs it",
    r"^make gpu-proof": "a GPU",
    r"tools\.gpu_proof --rehearse": "long: tests/e2e/test_gpu_proof.py runs it",
    r"transformer-engine": "a GPU, and a package index",
    r"--nproc-per-node 8 -m scope_megatron train": "eight GPUs, and a hub",
    r"prepare_data benchmark": "a hub",
    r"output_dir=runs/mine ": "a hub",
    r"data my_run\.yaml$": "the same as the one with --prompts",
    r"^python -m launch\.status": "Slurm: tests/slurm runs it",
    r"^python -m launch\.run \.\.\.": "a configuration of the reader's: tests/unit/test_launch.py",
    r"^python -m launch\.nemo": "a site of the reader's: tests/unit/test_launch.py runs it",
    r"make_smollm2\.py": "a package index, and 20 minutes",
    r"examples/smollm2\.yaml": "what make_smollm2.py makes, and an hour",
    r"benchmarks\.study --profile (small|full|hard)": "hours",
    r"tools\.tasks\.models": "long: trains two models",
}
READERS = {
    "launch.run configs/paper_1p5b.yaml": "launch.run configs/quickstart.yaml",
    "/models/student": "assets/tiny-student",
    "aime24=/data/aime24.jsonl": "aime24=aime24.jsonl",
    "/data/math500.jsonl": "math500.jsonl",
    "--max-tokens 32768": "--max-tokens 32",
    "--nproc-per-node 8": "--nproc-per-node 2",
    "runs/mine/hf": "runs/quickstart/hf",
    "evaluations/base-...": "evaluations/base-1f2e3d4c",
    "evaluations/student-...": "evaluations/student-1f2e3d4c",
    "--n 32": "--n 4",
    "--samples 32": "--samples 4",
}
SHORT = {
    "logging.trace.steps": ("train.steps=8", "evaluation.limit=8"),
    "output_dir=runs/tau2": ("train.steps=2", "evaluation.limit=8"),
    "rollout.placement=separate": (
        *("train.steps=2", "evaluation.limit=8"),
        "output_dir=runs/apart",
    ),
    "tools.recovery_study": ("--prompts", "8"),
}
WHOLE = [command for command in commands() if command.whole]


def why_not(command: DocCommand) -> str | None:
    return next((why for what, why in ELSEWHERE.items() if re.search(what, typed(command))), None)


def typed(command: DocCommand) -> str:
    """Without its comment."""
    return re.sub(r"\s+# .*", "", command.text).strip()


def test_what_is_left_out_is_there() -> None:
    for what in ELSEWHERE:
        assert any(re.search(what, typed(command)) for command in WHOLE), what
    assert len([c for c in WHOLE if why_not(c) is None]) > 30


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A clone with the files that a reader has, and with programs of this environment in runs/bin:
    nothing there may install the clone in it."""
    clone = tmp_path_factory.mktemp("reader") / "scope_megatron"
    subprocess.run(["git", "clone", "-q", ROOT, clone], check=True)
    changed = subprocess.run(
        ["git", "ls-files", "-mo", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    for name in changed:
        if (ROOT / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, clone / name)
    rows = (clone / "assets/arithmetic/eval.jsonl").read_text().splitlines(keepends=True)[:6]
    for name in ("aime24.jsonl", "math500.jsonl"):
        (clone / name).write_text("".join(rows))
    shutil.copy(clone / "tests/data/deepmath_20.parquet", clone / "rows.parquet")
    shutil.copy(clone / "configs/quickstart.yaml", clone / "my_run.yaml")
    programs = clone / "runs/bin"
    programs.mkdir(parents=True)
    modules = {"scope-megatron": "-m scope_megatron", "torchrun": "-m torch.distributed.run"}
    for name, module in (modules | {"python": ""}).items():
        lines = ["#!/bin/sh", 'case "$*" in "-m pip"*) exit 9;; esac']
        lines.append(f'exec {sys.executable} {module} "$@"')
        (programs / name).write_text("\n".join(lines) + "\n")
        (programs / name).chmod(0o755)
    yield clone


@pytest.mark.study
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "command", [c for c in WHOLE if why_not(c) is None], ids=lambda command: command.where
)
def test_it_runs(copy: Path, command: DocCommand) -> None:
    text = typed(command)
    for theirs, ours in READERS.items():
        text = text.replace(theirs, ours)
    for what, more in SHORT.items():
        if what in text:
            text = " ".join((text, *more))
    text = re.sub("^make ", "make -o env VENV=runs ", text.replace(".venv/bin/", ""))
    _evaluations(copy)
    if again := re.search(r"output_dir=(runs/\S+)", text):  # two pages have the same command
        shutil.rmtree(copy / again[1], ignore_errors=True)
    paths = os.pathsep.join([str(copy / "runs/bin"), os.environ["PATH"]])
    environment = os.environ | {"PATH": paths, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    started = time.monotonic()
    process = subprocess.Popen(
        text,
        shell=True,
        cwd=copy,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        if " view " in text:  # serves until it is interrupted
            assert process.stdout is not None
            told = process.stdout.readline()
            assert "http://127.0.0.1" in told or "http://localhost" in told, told
            os.killpg(process.pid, signal.SIGINT)
            process.wait(60)
        else:
            told, _ = process.communicate(timeout=560)
            assert process.returncode == 0, f"{text}\n{told[-3000:]}"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    print(f"{command.where}: {time.monotonic() - started:.0f} s: {text}")


def _evaluations(copy: Path) -> None:
    """The names that the pages give two evaluations, whose own end in what they were made of."""
    made = sorted((copy / "evaluations").glob("*"), key=lambda path: path.stat().st_mtime)
    for name in ("student-1f2e3d4c", "base-1f2e3d4c", "mine-hf-5a6b7c8d"):
        if made and not (copy / "evaluations" / name).exists():
            shutil.copytree(made[0], copy / "evaluations" / name)
