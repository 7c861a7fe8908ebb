"""Chunks tokenised in order by several processes, and how far they are."""

from __future__ import annotations

import ctypes
import itertools
import multiprocessing
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from scope_megatron.data.columns import RowShape
from scope_megatron.data.readers import Chunk
from scope_megatron.data.tokenise import PromptRecipe, TokenisedChunk, tokenise_chunk
from scope_megatron.data.tokenizer import Tokenizer

ALONE = 10  # chunks that are tokenised here: starting workers takes longer
MOST_WORKERS = 16
SILENT_S = 2.0
_PR_SET_PDEATHSIG = 1


class Crew:
    """Tokenises chunks, in order: the first here, those of a large set in a process per core."""

    def __init__(self, recipe: PromptRecipe, tokenizer: Tokenizer) -> None:
        self.recipe, self.tokenizer = recipe, tokenizer
        self._workers = min(len(os.sched_getaffinity(0)), MOST_WORKERS)
        self._pool: ProcessPoolExecutor | None = None

    def parts(self, work: Iterable[Chunk], shape: RowShape) -> Iterator[TokenisedChunk]:
        chunks = iter(work)
        for chunk in itertools.islice(chunks, ALONE if self._workers > 1 else None):
            yield tokenise_chunk(chunk, shape, self.recipe, self.tokenizer)
        waiting: deque[Future[TokenisedChunk]] = deque()
        for chunk in chunks:
            waiting.append(self._start().submit(_work, chunk, shape))
            if len(waiting) > 2 * self._workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _start(self) -> ProcessPoolExecutor:
        if self._pool is None:
            # spawn: this process may hold a device, threads and process groups
            self._pool = ProcessPoolExecutor(
                self._workers,
                multiprocessing.get_context("spawn"),
                _start_worker,
                (os.getpid(), self.recipe, self.tokenizer),
            )
        return self._pool

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


_worker: tuple[PromptRecipe, Tokenizer]


def _start_worker(parent: int, recipe: PromptRecipe, tokenizer: Tokenizer) -> None:
    global _worker
    _end_with(parent)
    _worker = recipe, tokenizer


def _work(chunk: Chunk, shape: RowShape) -> TokenisedChunk:
    recipe, tokenizer = _worker
    return tokenise_chunk(chunk, shape, recipe, tokenizer)


def _end_with(parent: int) -> None:
    """Ask the kernel for a SIGTERM when the parent dies, even by SIGKILL."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before that
        os.kill(os.getpid(), signal.SIGTERM)


class TokenisingProgress:
    """Progress on stderr: a bar on a terminal, elsewhere a line at the start and one at the end.

    What takes less than SILENT_S is not told.
    """

    def __init__(self, setting: str) -> None:
        self.setting, self.rows = setting, 0
        self._started = time.monotonic()
        self._told = False
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
        console = Console(stderr=True)
        self._bar = Progress(*columns, TimeRemainingColumn(), console=console, transient=True)
        self._task = self._bar.add_task(f"{setting}: tokenising", total=1.0)

    def __enter__(self) -> TokenisingProgress:
        return self

    def show(self, rows: int, share: float) -> None:
        """``rows`` are tokenised, ``share`` of all (in [0, 1])."""
        self.rows = rows
        if not self._told and time.monotonic() - self._started > SILENT_S:
            self._told = True
            if self._bar.console.is_terminal:
                self._bar.start()
            else:
                self._say(f"tokenising ({rows:,} rows so far, {share:.0%})")
        self._bar.update(self._task, completed=share)

    def __exit__(self, kind: object, *_: object) -> None:
        self._bar.stop()
        if self._told and kind is None:
            seconds = time.monotonic() - self._started
            self._say(
                f"{self.rows:,} rows tokenised in {seconds:.0f} s; the next start reads them from "
                "the cache"
            )

    def _say(self, text: str) -> None:
        print(f"{self.setting}: {text}", file=sys.stderr, flush=True)
