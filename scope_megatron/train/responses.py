"""The responses of a step and of an evaluation, handed to the thread that writes them down."""

from __future__ import annotations

import torch

from scope_megatron.config import Config
from scope_megatron.data.tokenizer import Tokenizer
from scope_megatron.learn.algorithms import Weighed
from scope_megatron.learn.batch import Batch
from scope_megatron.logging.logger import ShownResponse
from scope_megatron.logging.rollouts import ResponseRecord, RolloutWriter, begin
from scope_megatron.parallel.topology import Topology
from scope_megatron.types import Rollout

MOST_SHOWN = 8  # responses of a step in TensorBoard and W&B


class ResponseLog:
    """``logging.rollouts`` at work: one rank of each replica writes, the others do nothing."""

    def __init__(self, config: Config, tokenizer: Tokenizer, topology: Topology) -> None:
        self._settings, self._output_dir = config.logging.rollouts, config.output_dir
        self._updates = config.train.updates_per_batch
        self._samples = config.evaluation.samples
        self._dp_rank, self._dp_size = topology.dp_rank, topology.dp_size
        self._is_main = topology.is_main
        self._records: list[ResponseRecord] = []
        self.shown: list[ShownResponse] = []  # of the last step, for TensorBoard and W&B
        self._writer: RolloutWriter | None = None
        if self._settings.every and topology.is_replica_first:
            place = (self._dp_rank, self._dp_size)
            limit = self._settings.max_gib * 2**30
            self._writer = RolloutWriter(config.output_dir, tokenizer, place, limit)

    def begin(self, done: int) -> None:
        """The run starts, or goes on after ``done`` steps."""
        if self._is_main:
            begin(self._output_dir, done)

    def alternatives(self, batch: Batch, step: int) -> tuple[list[int], int]:
        """The responses of this replica whose alternatives ``step`` writes down, and how many of
        each token: 0 for none, on every rank alike."""
        every, count = self._settings.every, self._settings.alternatives
        if not count or not every or step % every:
            return [], 0
        return [i for i in batch.rollouts if self._chosen(int(batch.group[i]))], count

    def note(self, batch: Batch, weighed: Weighed, step: int, number: int) -> None:
        """Update ``number`` of ``step``, both from 1, has been made; after the last one the step's
        responses are on their way."""
        self.shown = []
        if self._writer is None or step % self._settings.every:
            return
        factors = torch.stack([factor for _, factor in weighed.streams]).sum(0)
        weights = [w for w in (weighed.student_weight, weighed.teacher_weight) if w is not None]
        for index, rollout in batch.rollouts.items():
            group = int(batch.group[index]) * self._updates + number - 1
            if self._chosen(group):
                weight = sum(float(w[index]) for w in weights) if weights else None
                factor = float(factors[index])
                self._records.append(_record(batch, index, rollout, group, weight, factor))
        if number == self._updates:
            records, self._records = sorted(self._records, key=_place), []
            self._writer.put("train", step, records)
            if self._is_main:
                self.shown = [_shown(record) for record in records[:MOST_SHOWN]]

    def evaluated(self, step: int, sets: dict[str, list[Rollout]]) -> None:
        """The graded samples of an evaluation after ``step`` steps, by set, on this replica."""
        if self._writer is None:
            return
        records = [
            ResponseRecord(group=group, rollout=rollout, set=name)
            for name, rollouts in sets.items()
            for n, rollout in enumerate(rollouts)
            if self._chosen(group := n // self._samples * self._dp_size + self._dp_rank)
        ]
        self._writer.put("eval", step, records)

    def _chosen(self, group: int) -> bool:
        return self._settings.select == "all" or group < self._settings.groups

    def close(self) -> None:
        """Until everything is written."""
        if self._writer is not None:
            self._writer.close()


def _record(
    batch: Batch, index: int, rollout: Rollout, group: int, weight: float | None, factor: float
) -> ResponseRecord:
    routes = batch.routes
    path = "masked"
    if bool(routes.correct[index]):
        path = "correct"
    elif bool(routes.incorrect[index]):
        path = "incorrect"
    student, teacher = batch.old_logprobs.get(index), batch.teacher_logprobs.get(index)
    return ResponseRecord(
        group=group,
        rollout=rollout,
        path=path,
        weight=weight,
        factor=factor,
        student=batch.logprobs.get(index) if student is None else student,
        teacher=batch.teacher_aside.get(index) if teacher is None else teacher,
        entropy=batch.token_entropy.get(index),
        divergence=batch.divergence.get(index),
        student_best=batch.student_best.get(index),
        teacher_best=batch.teacher_best.get(index),
    )


def _shown(record: ResponseRecord) -> ShownResponse:
    rollout = record.rollout
    return ShownResponse(
        prompt=rollout.prompt.text,
        response=rollout.text,
        verdict="" if rollout.verdict is None else str(rollout.verdict),
        path=record.path or "",
        weight=record.weight,
        tokens=len(rollout.token_ids),
    )


def _place(record: ResponseRecord) -> tuple[int, int]:
    return record.group, record.rollout.sample
