"""Finished runs, one JSON object a line. A line is appended when its run has ended, so that a study
that was interrupted goes on with the runs that are missing.

    {"task", "method", "seed", "lr", "split", "fingerprint",
     "samples": answers per problem,
     "correct": {set: [correct answers of every problem]},
     "steps": {metric: [[step, value], ...]},
     "seconds", "date", "machine"}
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class Key:
    """What tells one run from another. ``split``: test, or tuning of learning rates."""

    task: str
    method: str
    seed: int
    lr: float
    split: str
    fingerprint: str  # of settings, data and models

    @classmethod
    def of(cls, row: Row) -> Key:
        return cls(**{name: row[name] for name in cls.__dataclass_fields__})


class RowFile:
    """The file and what it holds; a line that was cut short by a kill is left out."""

    def __init__(self, path: Path) -> None:
        self.path, self.rows = path, dict[Key, Row]()
        self.read()

    def read(self) -> dict[Key, Row]:
        """All rows, with those that others have added since."""
        for line in self.path.read_bytes().splitlines() if self.path.is_file() else []:
            try:
                row = json.loads(line)
                self.rows[Key.of(row)] = row
            except (ValueError, KeyError, TypeError):
                continue
        return self.rows

    def add(self, row: Row) -> None:
        """Append a finished run."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        cut = self.path.is_file() and not self.path.read_bytes().endswith(b"\n")
        line = json.dumps(row, separators=(",", ":"), allow_nan=False)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(("\n" if cut and self.path.stat().st_size else "") + line + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.rows[Key.of(row)] = row

    def select(self, task: str, split: str, fingerprints: Iterable[str]) -> list[Row]:
        """Rows of a task and split that belong to the present settings, data and models."""
        valid = set(fingerprints)
        return [
            row
            for key, row in self.rows.items()
            if key.task == task and key.split == split and key.fingerprint in valid
        ]
