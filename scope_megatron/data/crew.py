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

from scope_megatron.data.columns import RowShape
from scope_megatron.data.readers import Chunk
from scope_megatron.data.tokenise import PromptRecipe, TokenisedChunk, tokenise_chunk
from scope_megatron.data.tokenizer import Tokenizer

ALONE = 10  # chunks that are tokenised here: starting workers takes longer
MOST_WORKERS = 16
SILENT_S = 2.0  # what takes less time is not told
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
    """How far tokenising is, on stderr: a bar on a terminal, else a line at the start and end."""

    def __init__(self, setting: str) -> None:
        self.setting, self.started, self.last = setting, time.monotonic(), 0.0
        self.rows = 0
        self.bar = sys.stderr.isatty()

    def __enter__(self) -> TokenisingProgress:
        return self

    def show(self, rows: int) -> None:
        self.rows, now = rows, time.monotonic()
        if now - self.started < SILENT_S or (self.last and not self.bar) or now - self.last < 0.2:
            return
        text = f"{self.setting}: tokenising ({rows:,} rows so far)"
        print(f"\r{text}" if self.bar else text, end="" if self.bar else "\n", file=sys.stderr)
        self.last = now

    def __exit__(self, kind: object, *_: object) -> None:
        if not self.last:
            return
        seconds = time.monotonic() - self.started
        if kind is None:
            end = "\r" if self.bar else ""
            print(
                f"{end}{self.setting}: {self.rows:,} rows tokenised in {seconds:.0f} s; "
                "the next start reads them from the cache",
                file=sys.stderr,
            )
