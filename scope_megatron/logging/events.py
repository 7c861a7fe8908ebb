"""What happened to a run and when: events.jsonl, a line per event, by the main rank."""

from __future__ import annotations

import json
import time
from pathlib import Path

from scope_megatron import outputs
from scope_megatron.disk import write_atomically


class EventLog:
    """Appends events; a disk that does not take one loses it and stops nothing."""

    def __init__(self, output_dir: Path, enabled: bool) -> None:
        self._path = output_dir / outputs.EVENTS if enabled else None

    def add(self, kind: str, step: int, text: str = "") -> None:
        """``kind``: start, resume, evaluate, save, skip, stop, fail or finish; ``step``: steps
        done by then."""
        if self._path is None:
            return
        event = {"time": round(time.time(), 3), "kind": kind, "step": step, "text": text}
        try:
            with self._path.open("ab") as file:
                file.write(json.dumps(event).encode() + b"\n")
        except OSError:
            pass

    def begin(self, done: int, config: str) -> None:
        """The run starts, or goes on after ``done`` steps; its configuration is written beside."""
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if not done:
                self._path.unlink(missing_ok=True)
            write_atomically(self._path.with_name(outputs.CONFIG), config)
        except OSError:
            pass
        self.add("resume" if done else "start", done)
