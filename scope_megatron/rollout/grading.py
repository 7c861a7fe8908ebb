"""Responses graded as the engine finishes them, so that only the last ones are waited for."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

from scope_megatron.data.tokenizer import Tokenizer
from scope_megatron.rollout.verify import Verifiers
from scope_megatron.trace.spans import span
from scope_megatron.types import Rollout, Verdict


class Grading:
    """A thread that takes finished rollouts and fills in ``text`` and ``verdict`` of each.

    It waits for the verifiers' processes, which do the work. What is handed over while it waits is
    taken in one go afterwards: a response that takes its whole time limit delays the others by no
    more than that.
    """

    def __init__(
        self,
        verifiers: Verifiers,
        tokenizer: Tokenizer,
        graded: Callable[[Rollout], None] | None = None,
        most: int | None = None,
    ) -> None:
        """``graded`` is called in the thread, with each rollout once it has its verdict; ``most``
        rollouts (None: any number) get theirs together."""
        self._most = most
        self._verifiers, self._tokenizer, self._graded = verifiers, tokenizer, graded
        self._waiting: queue.SimpleQueue[Rollout | None] = queue.SimpleQueue()
        self._failure: Exception | None = None
        self.seconds = 0.0  # that verifiers took
        self._thread = threading.Thread(target=self._run, name="grading", daemon=True)
        self._thread.start()

    def put(self, rollout: Rollout) -> None:
        """Hand over a finished response. Raises what went wrong with an earlier one."""
        self._raise()
        self._waiting.put(rollout)

    def finish(self) -> None:
        """Wait until everything that was handed over has its verdict."""
        self._waiting.put(None)
        self._thread.join()
        self._raise()

    def _raise(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            while batch := self._take():
                self._grade(batch)
        except Exception as error:  # raised again by the thread that runs the engine
            self._failure = error

    def _take(self) -> list[Rollout]:
        """What waits, at least one; empty at the end."""
        batch: list[Rollout] = []
        while (not batch or not self._waiting.empty()) and len(batch) != self._most:
            item = self._waiting.get()
            if item is None:
                if batch:
                    self._waiting.put(None)
                break
            batch.append(item)
        return batch

    def _grade(self, batch: list[Rollout]) -> None:
        for rollout in batch:
            rollout.text = self._tokenizer.decode(rollout.token_ids)
        begun = time.perf_counter()
        with span("grade", "grading", responses=len(batch)):
            verdicts = self._verifiers.grade([(r.text, r.prompt) for r in batch])
        self.seconds += time.perf_counter() - begun
        for rollout, verdict in zip(batch, verdicts, strict=True):
            rollout.verdict = Verdict(verdict)
            if self._graded is not None:
                self._graded(rollout)
