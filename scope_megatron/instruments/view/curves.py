"""Metrics of a run, followed as they grow, thinned to what a screen can show."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from scope_megatron.logging.logger import merge_values, parse_line

MOST_POINTS = 1200  # of a curve: about the pixels across a screen


class GrowingLines:
    """Whole lines of a file that grows, and is replaced by a shorter one when its run resumes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset, self._inode = 0, -1

    def new(self) -> tuple[bool, bytes]:
        """(whether the file has begun anew, the bytes of the lines since the last call)."""
        try:
            with self.path.open("rb") as file:
                status = self.path.stat()
                fresh = status.st_ino != self._inode or status.st_size < self._offset
                if fresh:
                    self._offset, self._inode = 0, status.st_ino
                file.seek(self._offset)
                data = file.read()
        except OSError:
            fresh = self._inode != -1
            self._offset, self._inode = 0, -1
            return fresh, b""
        data = data[: data.rfind(b"\n") + 1]
        self._offset += len(data)
        return fresh, data


class Curves:
    """``steps``: values by step and name, finite ones alone; lines of one step are merged."""

    def __init__(self, path: Path) -> None:
        self._lines = GrowingLines(path)
        self.steps: dict[int, dict[str, float]] = {}
        self.nonfinite: dict[str, int] = {}
        self.version = 0
        self._series: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def refresh(self) -> None:
        """Read what was written since."""
        fresh, data = self._lines.new()
        if fresh:
            self.steps, self.nonfinite = {}, {}
        if fresh or data:
            self.version += 1
            self._series = {}
        for line in data.splitlines():
            if (row := parse_line(line)) is not None:
                values = self.steps.setdefault(row.pop("step"), {})
                merge_values(row, values, self.nonfinite)

    def names(self) -> list[str]:
        """Every metric, sorted."""
        return sorted(set().union(*self.steps.values()))

    def series(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps [n] int64, ascending, and values [n] float64 of a metric."""
        if name not in self._series:
            found = sorted((step, row[name]) for step, row in self.steps.items() if name in row)
            steps = np.array([step for step, _ in found], dtype=np.int64)
            self._series[name] = steps, np.array([value for _, value in found])
        return self._series[name]

    def thinned(self, name: str, first: float, last: float) -> dict[str, list[float]]:
        """A metric between two steps: ``step`` and ``mean``, and, where several steps share a
        point, their ``low`` and ``high``."""
        steps, values = self.series(name)
        inside = (steps >= first) & (steps <= last)
        steps, values = steps[inside], values[inside]
        if len(steps) <= MOST_POINTS:
            return {"step": steps.tolist(), "mean": values.tolist()}
        starts = np.unique(np.linspace(0, len(steps), MOST_POINTS, endpoint=False).astype(int))
        counts = np.diff([*starts, len(steps)])
        return {
            "step": steps[starts].tolist(),
            "mean": (np.add.reduceat(values, starts) / counts).tolist(),
            "low": np.minimum.reduceat(values, starts).tolist(),
            "high": np.maximum.reduceat(values, starts).tolist(),
        }
