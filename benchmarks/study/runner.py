"""A run from its settings to its row: `scope-megatron train` in one process, as users run it."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from benchmarks.ready import run_command
from benchmarks.study.rows import Key, Row
from benchmarks.study.settings import nested

LONGEST_S = 3600
SERIES = (  # kept by step
    "reward/mean",
    "entropy/student_correct",
    "entropy/student_incorrect",
    "perplexity/student_correct",
    "perplexity/student_incorrect",
    "perplexity/teacher_incorrect",
    "weight/student_ess",
    "weight/teacher_ess",
    "group/all_correct",
    "group/all_incorrect",
    "rollout/response_tokens_mean",
)


class RunFailed(Exception):
    """A run that ended with another exit code than 0."""


def call(arguments: list[str], log: Path) -> None:
    """`scope-megatron *arguments`, one thread, on the CPU; its output goes to ``log``."""
    log.parent.mkdir(parents=True, exist_ok=True)
    try:
        code = run_command(arguments, log, LONGEST_S)
    except TimeoutError as error:
        raise RunFailed(str(error)) from None
    if code:
        tail = log.read_text(errors="replace").strip().splitlines()[-1:]
        raise RunFailed(f"exit code {code}: {' '.join(tail)} ({log})")


@contextmanager
def claimed(key: Key, folder: Path) -> Iterator[bool]:
    """Whether this process is the one that makes the run; the claim ends with the process."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{cell_name(key)}.lock").open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def cell_name(key: Key) -> str:
    """A file's name for a run."""
    return f"{key.task}-{key.method}-{key.seed}-{key.lr:g}-{key.split}"


def run_cell(key: Key, settings: dict[str, Any], work: Path) -> Row:
    """Train, and read what the run wrote; the run's directory is removed."""
    folder = work / cell_name(key)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = folder / "study.yaml"
    config.write_text(yaml.safe_dump(nested({**settings, "output_dir": str(folder / "run")})))
    started = time.perf_counter()
    call(["train", str(config)], folder / "log")
    row = vars(key) | {
        "samples": settings["evaluation.samples"],
        "correct": read_correct(folder / "run"),
        "steps": read_series(folder / "run"),
        "seconds": round(time.perf_counter() - started, 1),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": f"{os.cpu_count()} cores {platform.machine()}",
    }
    shutil.rmtree(folder)
    return row


def read_correct(run: Path) -> dict[str, list[int]]:
    """Of the run's last evaluation, correct answers of every problem, by set."""
    rows = [json.loads(line) for line in _lines(run / "rollouts/index/00000.jsonl")]
    rows = [row for row in rows if row["kind"] == "eval"]
    last = max(row["step"] for row in rows)
    counts: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    for row in rows:
        if row["step"] == last:
            counts[row["set"]][row["group"]] += row["verdict"] == "correct" and row["finished"]
    return {name: [found[i] for i in range(len(found))] for name, found in counts.items()}


def read_series(run: Path) -> dict[str, list[list[float]]]:
    """The metrics that figures are drawn from, and every Avg@k, by step."""
    series: dict[str, list[list[float]]] = defaultdict(list)
    for line in _lines(run / "metrics.jsonl"):
        values = json.loads(line)
        for name, value in values.items():
            accuracy = name.startswith("eval/") and "/avg@" in name
            if (name in SERIES or accuracy) and isinstance(value, float):
                series[name].append([values["step"], float(f"{value:.5g}")])
    return dict(series)


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()
