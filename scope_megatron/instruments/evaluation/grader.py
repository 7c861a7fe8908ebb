"""Grades samples and writes them down beside the engine, so that neither waits for the other."""

from __future__ import annotations

from scope_megatron.data.tokenizer import Tokenizer
from scope_megatron.exits import UNSAVED, StopRun
from scope_megatron.instruments.evaluation.samples import Sample, SampleWriter
from scope_megatron.rollout.grading import Grading
from scope_megatron.rollout.verify import Verifiers
from scope_megatron.types import Rollout

MOST_AT_ONCE = 64  # samples graded, and then written, together


class Grader:
    """Takes finished rollouts with the name of their set; each is written once it is graded."""

    def __init__(self, verifiers: Verifiers, tokenizer: Tokenizer, writer: SampleWriter) -> None:
        self._writer = writer
        self._sets: dict[int, str] = {}  # by the rollout's identity
        self._grading = Grading(verifiers, tokenizer, self._write, MOST_AT_ONCE)
        self.written = 0

    def put(self, set_name: str, rollout: Rollout) -> None:
        """Hand over a finished response. Raises what went wrong with an earlier one."""
        self._sets[id(rollout)] = set_name
        try:
            self._grading.put(rollout)
        except OSError as error:
            raise self._unsaved(error) from error

    def finish(self) -> None:
        """Wait until everything is graded and written."""
        try:
            self._grading.finish()
        except OSError as error:
            raise self._unsaved(error) from error

    def _unsaved(self, error: OSError) -> StopRun:
        return StopRun(
            UNSAVED,
            f"{self._writer.path} cannot be written ({error.strerror}): make room and "
            "repeat the command to go on",
        )

    def _write(self, rollout: Rollout) -> None:
        assert rollout.verdict is not None
        sample = Sample(
            set=self._sets.pop(id(rollout)),
            problem=rollout.prompt.index,
            sample=rollout.sample,
            tokens=len(rollout.token_ids),
            finished=rollout.finished,
            verdict=rollout.verdict,
            text=rollout.text,
        )
        self._writer.write(sample)
        self.written += 1
