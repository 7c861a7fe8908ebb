"""The runs that are looked at: what stands in the directory of each."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

import yaml

from scope_megatron import outputs
from scope_megatron.instruments.view.curves import Curves, GrowingLines
from scope_megatron.instruments.view.search import Responses
from scope_megatron.logging.health import advice

QUIET_S = 900.0  # a run on another machine that wrote nothing for so long counts as gone
_ENDS = {"finish": "finished", "stop": "stopped", "fail": "failed"}


class RunFolder:
    """One run. Its methods may be called by several threads."""

    def __init__(self, directory: Path, name: str) -> None:
        self.directory, self.name = directory, name
        self.curves = Curves(directory / outputs.METRICS)
        self.responses = Responses(directory)
        self._event_lines = GrowingLines(directory / outputs.EVENTS)
        self._events: list[dict[str, Any]] = []
        self.lock = threading.Lock()

    def refresh(self) -> None:
        """Read what was written since, but for responses: those are read when they are asked for.
        The caller holds ``lock``."""
        self.curves.refresh()
        fresh, data = self._event_lines.new()
        if fresh:
            self._events.clear()
        for line in data.splitlines():
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict) and isinstance(event.get("step"), int):
                self._events.append(event)

    def config(self) -> dict[str, Any]:
        """Every setting by its dotted key; empty for a run that left no config.yaml."""
        try:
            tree = yaml.safe_load((self.directory / outputs.CONFIG).read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            return {}
        return dict(_flat("", tree))

    def events(self) -> list[dict[str, Any]]:
        """What happened, by step: events.jsonl, updates that were skipped, evaluations."""
        found = [dict(event) for event in self._events]
        for step, row in self.curves.steps.items():
            if row.get("update/skipped"):
                found.append({"kind": "skip", "step": step, "text": "the update was skipped"})
            for name in row:
                if name.startswith("eval/avg@"):
                    text = f"{name.removeprefix('eval/')} = {100 * row[name]:.1f} %"
                    found.append({"kind": "evaluate", "step": step, "text": text})
        for path in sorted(outputs.checkpoints(self.directory)):
            text = f"checkpoint {path.name}"
            found.append({"kind": "save", "step": outputs.step_of(path), "text": text})
        for path in sorted((self.directory / outputs.STACKS).glob("*")):
            last = max(self.curves.steps, default=0)
            text = f"stacks of a hung rank: {outputs.STACKS}/{path.name}"
            found.append({"kind": "hang", "step": last, "time": path.stat().st_mtime, "text": text})
        return sorted(found, key=lambda event: (event["step"], event.get("time", 0.0)))

    def state(self) -> str:
        """running, finished, stopped, failed, or gone: it ended without a word."""
        last = self._events[-1]["kind"] if self._events else None
        if last in _ENDS:
            return _ENDS[last]
        return "running" if self._alive() else "gone"

    def _alive(self) -> bool:
        try:
            holder = json.loads((self.directory / outputs.LOCK).read_text())
            if holder["host"] == socket.gethostname():
                os.kill(int(holder["pid"]), 0)
                return True
            written = (self.directory / outputs.METRICS).stat().st_mtime
        except (OSError, ValueError, KeyError, TypeError):
            return False
        return time.time() - written < QUIET_S

    def summary(self) -> dict[str, Any]:
        """What the page shows of every run at once."""
        config = self.config()
        return {
            "name": self.name,
            "directory": str(self.directory),
            "state": self.state(),
            "version": self.curves.version,
            "step": max(self.curves.steps, default=0),
            "steps": config.get("train.steps"),
            "algorithm": config.get("algorithm.name"),
            "responses": self.responses.size(),
            "metrics": self.curves.names(),
            "nonfinite": self.curves.nonfinite,
            "advice": [vars(item) for item in advice(self.curves.series)],
            "events": self.events(),
        }


def find_runs(paths: list[Path]) -> list[RunFolder]:
    """A run for each directory with metrics.jsonl, and for each one directly below the others.

    Raises ValueError where there is none.
    """
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            raise ValueError(f"RUN: {path} is no directory; give the output_dir of a run")
        below = [p for p in sorted(path.iterdir()) if p.is_dir() and _is_run(p)]
        if _is_run(path):
            found.append(path)
        elif below:
            found += below
        else:
            raise ValueError(
                f"RUN: {path} holds no {outputs.METRICS}, nor does a directory in it; give the "
                "output_dir of a run, or a directory of runs"
            )
    unique = list(dict.fromkeys(path.resolve() for path in found))
    names = [path.name for path in unique]
    shown = [p.name if names.count(p.name) == 1 else f"{p.parent.name}/{p.name}" for p in unique]
    return [RunFolder(path, name) for path, name in zip(unique, shown, strict=True)]


def _is_run(path: Path) -> bool:
    return any((path / name).exists() for name in (outputs.METRICS, outputs.EVENTS))


def differences(configs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every setting with its value in each run, and whether they differ; null: not set."""
    keys = list(dict.fromkeys(key for config in configs for key in config))
    rows = []
    for key in keys:
        values = [json.dumps(config[key]) if key in config else None for config in configs]
        rows.append({"key": key, "values": values, "differs": len(set(values)) > 1})
    return rows


def _flat(prefix: str, tree: Any) -> list[tuple[str, Any]]:
    if not isinstance(tree, dict) or not tree:
        return [(prefix, tree)]
    return [pair for k, v in tree.items() for pair in _flat(f"{prefix}.{k}" if prefix else k, v)]
