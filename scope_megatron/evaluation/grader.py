"""Grades samples and writes them down beside the engine, so that neither waits for the other."""

from __future__ import annotations

import queue
import threading

from scope_megatron.data.tokenizer import Tokenizer
from scope_megatron.evaluation.samples import Sample, SampleWriter
from scope_megatron.exits import UNSAVED, StopRun
from scope_megatron.rollout.verify import Verifiers
from scope_megatron.types import Rollout, Verdict

MOST_AT_ONCE = 64  # samples handed to the verifier together


class Grader:
    """A thread that takes finished rollouts; the verifier's work is done in its own processes."""

    def __init__(self, verifiers: Verifiers, tokenizer: Tokenizer, writer: SampleWriter) -> None:
        self._verifiers, self._tokenizer, self._writer = verifiers, tokenizer, writer
        self._waiting: queue.SimpleQueue[tuple[str, Rollout] | None] = queue.SimpleQueue()
        self._failure: Exception | None = None
        self.written = 0
        self._thread = threading.Thread(target=self._run, name="grader", daemon=True)
        self._thread.start()

    def put(self, set_name: str, rollout: Rollout) -> None:
        """Hand over a finished response. Raises what went wrong with an earlier one."""
        self._raise()
        self._waiting.put((set_name, rollout))

    def finish(self) -> None:
        """Wait until everything is graded and written."""
        self._waiting.put(None)
        self._thread.join()
        self._raise()

    def _raise(self) -> None:
        if isinstance(self._failure, OSError):
            raise StopRun(
                UNSAVED,
                f"{self._writer.path} cannot be written ({self._failure.strerror}): make room and "
                "repeat the command to go on",
            )
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            while batch := self._take():
                self._grade(batch)
        except Exception as error:  # raised again by the thread that runs the engine
            self._failure = error

    def _take(self) -> list[tuple[str, Rollout]]:
        """What waits, at least one sample; empty at the end."""
        batch: list[tuple[str, Rollout]] = []
        while len(batch) < MOST_AT_ONCE and (not batch or not self._waiting.empty()):
            item = self._waiting.get()
            if item is None:
                if batch:
                    self._waiting.put(None)
                break
            batch.append(item)
        return batch

    def _grade(self, batch: list[tuple[str, Rollout]]) -> None:
        for _, rollout in batch:
            rollout.text = self._tokenizer.decode(rollout.token_ids)
        items = [(rollout.text, rollout.prompt) for _, rollout in batch]
        for (name, rollout), verdict in zip(batch, self._verifiers.grade(items), strict=True):
            sample = Sample(
                set=name,
                problem=rollout.prompt.index,
                sample=rollout.sample,
                tokens=len(rollout.token_ids),
                finished=rollout.finished,
                verdict=Verdict(verdict),
                text=rollout.text,
            )
            self._writer.write(sample)
            self.written += 1
