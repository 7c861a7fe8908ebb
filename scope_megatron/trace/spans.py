"""Spans of time on this rank, for the steps that ``logging.trace`` names.

    with span("teacher", responses=12): ...      # anywhere, in any thread

Without :func:`start` that is one comparison and nothing is kept. A process is a rank, so it has one
recorder, and who has something to tell need not be given it.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import TracebackType
from typing import Any

from scope_megatron.trace.clock import Clock
from scope_megatron.trace.files import RankFile

STEP = "step"  # the lane of the thread that makes the steps
MEASURE_S = 60.0  # after which clocks of several nodes are compared anew
WRITE_S = 0.25  # after which a span that ends inside a phase is written too

_NOTHING: AbstractContextManager[None] = nullcontext()
_recorder: Recorder | None = None


def start(recorder: Recorder) -> None:
    """From now on spans go to ``recorder``."""
    global _recorder
    _recorder = recorder


def stop() -> None:
    """Write what is left; nothing is recorded any more."""
    global _recorder
    recorder, _recorder = _recorder, None
    if recorder is not None:
        recorder.write()


def flush() -> None:
    """Write what has ended so far: before a rank waits, and where it may be the last chance."""
    if _recorder is not None:
        _recorder.write()


def span(name: str, lane: str = STEP, **facts: Any) -> AbstractContextManager[None]:
    """The time inside is a span. ``lane``: the thread's row; ``facts``: numbers or words, shown
    with it. An error that passes through is named."""
    return _NOTHING if _recorder is None else Span(_recorder, name, lane, facts)


@contextmanager
def traced_step(step: int) -> Iterator[None]:
    """Step ``step`` (from 1) of a rank that trains. Whether it is among those asked for also holds
    for what comes after it, up to the next one."""
    recorder = _recorder
    if recorder is None:
        yield
        return
    recorder.turn(step, recorder.wanted(step))
    try:
        with Span(recorder, f"step {step}", STEP, {}):
            yield
    finally:
        recorder.write()


def traced_errand(step: int, lag: int) -> None:
    """A rank that samples begins with the batch of ``step``, which others train on then, or sample
    ``lag`` steps ahead of: both are shown."""
    if _recorder is not None:
        _recorder.turn(step, _recorder.wanted(step) or _recorder.wanted(step - lag))


class Recorder:
    """Keeps the spans of one rank and writes them. Any thread may end a span."""

    def __init__(self, file: RankFile, clock: Clock, wanted: Callable[[int], bool]) -> None:
        """``wanted``: whether a step is asked for."""
        self.wanted = wanted
        self.on, self.step = False, 0
        self.depth = 0  # of spans that are open in the lane of steps: the step is 1, a phase 2
        self._file, self._clock = file, clock
        self._ended: list[dict[str, Any]] = []
        self._written, self._lock = time.monotonic(), threading.Lock()
        self._measured = -math.inf

    def turn(self, step: int, on: bool) -> None:
        """``step`` begins; spans that begin or end from now on are kept, or not."""
        if on and time.monotonic() - self._measured > MEASURE_S:
            self._measured = time.monotonic()
            self._clock.measure()
            self._file.clock(self._clock.describe())
        self.step, self.on = step, on

    def add(self, one: Span, ended: int) -> None:
        begun, ended = self._clock.microseconds(one.begun), self._clock.microseconds(ended)
        event = {"ph": "X", "name": one.name, "ts": begun, "dur": ended - begun, "cat": one.lane}
        with self._lock:
            self._ended.append(event | {"args": {"step": one.step, **one.facts}})
        phase = one.lane == STEP and self.depth <= 1
        if phase or time.monotonic() - self._written > WRITE_S:
            self.write()

    def write(self) -> None:
        """Append what has ended to this rank's file."""
        with self._lock:
            ended, self._ended = self._ended, []
            self._file.append(ended)
            self._written = time.monotonic()


class Span:
    """See :func:`span`. Kept where the recorder is on at its begin or at its end."""

    __slots__ = ("_kept", "_recorder", "begun", "facts", "lane", "name", "step")

    def __init__(self, recorder: Recorder, name: str, lane: str, facts: dict[str, Any]) -> None:
        self._recorder, self.name, self.lane, self.facts = recorder, name, lane, facts
        self.begun, self.step, self._kept = 0, 0, False

    def __enter__(self) -> None:
        self._kept, self.step = self._recorder.on, self._recorder.step
        self._recorder.depth += self.lane == STEP
        self.begun = time.perf_counter_ns()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        ended = time.perf_counter_ns()
        self._recorder.depth -= self.lane == STEP
        if kind is not None:
            self.facts = self.facts | {"error": kind.__name__}
        if self._kept or self._recorder.on:
            self._recorder.add(self, ended)
