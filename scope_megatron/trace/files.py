"""The files of a trace: ``trace/rank_00003.json`` of each rank, ``trace/trace.json`` of all.

A rank's file is Chrome's array form, a line per event: viewers open it while it grows, and one that
was cut off by a kill. Times are microseconds on the job's clock (``clock.py``), so that files fit
together as they are.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scope_megatron import outputs
from scope_megatron.disk import write_atomically

MERGED = "trace.json"
_STEP = re.compile(rb'"args":{"step":(\d+)')
LANES = ("step", "grading", "checkpoint", "responses")  # from the top; others follow


def begin_trace(output_dir: Path, done: int) -> None:
    """Before a run's first span, by one rank: a run that starts anew (``done`` 0) sets the trace of
    an earlier attempt aside, one that goes on appends to it."""
    directory = output_dir / outputs.TRACE
    if done or not directory.is_dir():
        return
    numbered = (directory.with_name(f"{directory.name}.{n}") for n in itertools.count(1))
    directory.rename(next(path for path in numbered if not path.exists()))


class RankFile:
    """This rank's file. A disk that does not take it ends the trace, not the run."""

    def __init__(self, output_dir: Path, rank: int, name: str) -> None:
        """``name``: what viewers call the rank. Nothing is written before the first event."""
        self._path = output_dir / outputs.TRACE / f"rank_{rank:05d}.json"
        self._rank, self._name = rank, name
        self._lanes: dict[str, int] = {}
        self._clock: str | None = None
        self._begun = self._broken = False

    def clock(self, said: str) -> None:
        """How this rank's times are the job's, told with the next events."""
        self._clock = said

    def append(self, events: Sequence[dict[str, Any]]) -> None:
        """Spans (``cat`` is their lane), handed to the system when this returns."""
        if not events or self._broken:
            return
        lines = [*self._facts(events), *({**e, **self._place(e["cat"])} for e in events)]
        text = "".join(json.dumps(line, separators=(",", ":")) + ",\n" for line in lines)
        try:
            if not self._begun:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                _cut_to_lines(self._path)
                self._begun = True
            with self._path.open("ab", buffering=0) as file:
                if not file.tell():
                    text = "[\n" + text
                data = text.encode()
                while data:
                    data = data[file.write(data) :]
        except OSError as error:
            self._broken = True
            reason = f"{self._path} is not written: {error.strerror}; the run goes on"
            print(f"warning: logging.trace: {reason}", file=sys.stderr, flush=True)

    def _place(self, lane: str) -> dict[str, int]:
        return {"pid": self._rank, "tid": self._lanes[lane]}

    def _facts(self, events: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """What viewers have to know before the events: names of the rank and of its lanes."""
        if not self._lanes:
            yield _fact("process_name", self._rank, 0, name=self._name)
            yield _fact("process_sort_index", self._rank, 0, sort_index=self._rank)
        if self._clock is not None:
            yield _fact("process_labels", self._rank, 0, labels=self._clock)
            self._clock = None
        for lane in dict.fromkeys(event["cat"] for event in events):
            if lane not in self._lanes:
                others = len(LANES) + len(self._lanes)
                number = LANES.index(lane) if lane in LANES else others
                self._lanes[lane] = number
                yield _fact("thread_name", self._rank, number, name=lane)
                yield _fact("thread_sort_index", self._rank, number, sort_index=number)


def _fact(kind: str, rank: int, lane: int, **args: Any) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": rank, "tid": lane, "args": args}


def _cut_to_lines(path: Path) -> None:
    """What a killed run left of its last line is removed: viewers would stop there."""
    if path.is_file():
        data = path.read_bytes()
        os.truncate(path, data.rfind(b"\n") + 1)


def rank_files(output_dir: Path) -> list[Path]:
    """The ranks' files, in their order."""
    return sorted((output_dir / outputs.TRACE).glob("rank_*.json"))


def merge(output_dir: Path) -> Path | None:
    """Write ``trace/trace.json`` of all ranks' files; None where there are none. Raises OSError."""
    found = rank_files(output_dir)
    if not found:
        return None
    path = output_dir / outputs.TRACE / MERGED
    write_atomically(path, _merged(found))
    return path


def _merged(paths: Iterable[Path]) -> Iterator[bytes]:
    yield b'{"displayTimeUnit":"ms","otherData":{"program":"scope_megatron"},"traceEvents":[\n'
    before = b""
    for path in paths:
        for line in _lines(path):
            yield before + line
            before = b",\n"
    yield b"\n]}\n"


def _lines(path: Path) -> Iterator[bytes]:
    """The events of a rank's file, each as its JSON; half a line at its end is left out."""
    with path.open("rb") as file:
        for line in file:
            if line.startswith(b"{") and line.endswith(b"},\n"):
                yield line[:-2]


@dataclass(frozen=True)
class TracedSpan:
    """A span, read again. Times in microseconds on the job's clock."""

    rank: int
    lane: str
    name: str
    begun: int
    ended: int
    step: int
    facts: dict[str, Any]


@dataclass
class Trace:
    """Spans of all ranks by their begin, and what the ranks are called."""

    spans: list[TracedSpan]
    names: dict[int, str]
    clocks: dict[int, str]

    def steps(self) -> list[int]:
        """The steps that were made whole: on no rank did an error end them, the last time."""
        made = {(s.step, s.rank): s for s in self.spans if s.name == f"step {s.step}"}
        failed = {step for (step, _), s in made.items() if "error" in s.facts}
        return sorted({step for step, _ in made} - failed)

    def window(self, step: int) -> tuple[int, int]:
        """When ``step`` was made: from the first rank's begin to the last one's end. The last time
        it was made, where it was made again after a fault."""
        latest = {s.rank: s for s in self.spans if s.name == f"step {step}"}
        last = max(s.begun for s in latest.values())
        together = [s for s in latest.values() if s.ended >= last]
        return min(s.begun for s in together), max(s.ended for s in together)


def traced_steps(output_dir: Path) -> list[int]:
    """The steps of the trace that are whole."""
    trace = read_trace(output_dir, having=b'"name":"step ')
    return trace.steps() if trace is not None else []


def read_trace(output_dir: Path, steps: range | None = None, having: bytes = b"") -> Trace | None:
    """What the ranks have written so far, of ``steps`` alone or all; of lines that have these
    bytes. None where there is no such span."""
    trace = Trace([], {}, {})
    for path in rank_files(output_dir):
        for line in _lines(path):
            found = _STEP.search(line)
            if found and (having not in line or (steps and int(found[1]) not in steps)):
                continue
            try:
                _take(trace, json.loads(line))
            except (ValueError, KeyError, TypeError):
                continue  # written by no rank
    trace.spans.sort(key=lambda one: (one.begun, -one.ended))
    return trace if trace.spans else None


def _take(trace: Trace, event: dict[str, Any]) -> None:
    rank, args = int(event["pid"]), event["args"]
    if event["name"] == "process_name":
        trace.names[rank] = str(args["name"])
    elif event["name"] == "process_labels":
        trace.clocks[rank] = str(args["labels"])
    elif event["ph"] == "X":
        begun, name, lane = int(event["ts"]), str(event["name"]), str(event["cat"])
        ended = begun + int(event["dur"])
        facts = {key: value for key, value in args.items() if key != "step"}
        trace.spans.append(TracedSpan(rank, lane, name, begun, ended, int(args["step"]), facts))
