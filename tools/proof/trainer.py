"""What the parts ask of the trainer, in one place: where its interfaces change, this file does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from scope_megatron.config import Config
    from scope_megatron.types import Rollout


def build_learner(config: Config) -> Any:
    """Join the job and build student and teacher (collective)."""
    from scope_megatron.learn.learner import Learner
    from scope_megatron.train import setup

    return Learner(config, setup.start_process(config))


def logprobs(learner: Any, rollouts: list[Rollout]) -> list[Tensor]:
    """float32 [response length] of every response under the student, at temperature 1."""
    members = list(range(len(rollouts)))
    spec = learner.head.spec.alone().at(1.0)
    scored = learner.scorer.score(learner.student, dict(enumerate(rollouts)), members, spec)
    return [scored.logprobs[index] for index in members]


def one_update(learner: Any, rollouts: list[Rollout]) -> dict[str, float]:
    """One update on graded rollouts, whole groups side by side, the same list on every rank.

    Returns the loss and the gradient's norm, of all replicas.
    """
    from scope_megatron.parallel import platform
    from tests.support.steps import one_step

    topology = learner.topology
    replica, replicas = topology.dp_rank, topology.dp_size
    mine = [r for r in rollouts if r.prompt.index % replicas == replica]
    _, metrics = one_step(learner, mine)
    values = metrics.reduce(topology.dp_group, platform.device())
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return {"loss": values["loss/total"], "grad_norm": values["grad_norm"]}


@contextmanager
def scored_lengths(learner: Any) -> Iterator[dict[str, list[int]]]:
    """Lengths of the sequences that the passes before an update score, by model."""
    kind, before = type(learner.scorer), learner.score
    original = kind.score
    lengths: dict[str, list[int]] = {"student": [], "teacher": []}

    def score(self: Any, model: Any, rollouts: Any, members: Any, *args: Any, **more: Any) -> Any:
        name = "student" if model is learner.student else "teacher"
        lengths[name] += [rollouts[index].length for index in members]
        return original(self, model, rollouts, members, *args, **more)

    def passes(batch: Any) -> None:
        kind.score = score
        try:
            before(batch)
        finally:
            kind.score = original  # not those of the check of the engine's weights

    learner.score = passes
    try:
        yield lengths
    finally:
        del learner.score


def logprob_and_divergence(
    kind: str, student: Tensor, teacher: Tensor, targets: Tensor, vocab_size: int, **settings: Any
) -> tuple[Tensor, Tensor]:
    """([T], [T]) of logits [T, W] by the loss head. ``settings``: temperature,
    teacher_temperature, beta, kernel."""
    from scope_megatron.objective import Shard, Spec, vocab_parallel_logprob_and_divergence

    shard = Shard.of(student.shape[1], vocab_size, None)
    spec = Spec(divergence=kind, **settings)  # type: ignore[arg-type]
    return vocab_parallel_logprob_and_divergence(student, targets, teacher, shard, spec)
