"""The runs of docs/study.md as the metrics that their rows keep: real curves to judge by."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

Row = dict[str, Any]
ROWS = Path(__file__).resolve().parents[2] / "benchmarks/study/results/rows.jsonl"
RESPONSES = 256  # a step


@cache
def finished_runs() -> tuple[Row, ...]:
    """Every finished run on the test problems."""
    rows = (json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines())
    return tuple(row for row in rows if row["split"] == "test")


def rows_of(task: str, method: str) -> Iterator[Row]:
    """The seeds of one method on one task."""
    yield from (row for row in finished_runs() if (row["task"], row["method"]) == (task, method))


def metrics_of(row: Row) -> dict[int, dict[str, float]]:
    """{step: {metric: value}}. Paths are counted from the reward, nothing there was masked."""
    found: dict[int, dict[str, float]] = {}
    for name, points in row["steps"].items():
        for step, value in points:
            found.setdefault(int(step), {})[name] = value
    for values in found.values():
        if "reward/mean" in values:
            values["path/correct"] = RESPONSES * values["reward/mean"]
            values["path/incorrect"] = RESPONSES - values["path/correct"]
    return found
