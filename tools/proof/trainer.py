"""What the parts ask of the trainer, in one place: where its interfaces change, this file does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from scope_megatron.config import Config
    from scope_megatron.types import Rollout


def build_learner(config: Config) -> Any:
    """Join the job and build student and teacher (collective)."""
    from scope_megatron.train import setup
    from scope_megatron.train.learner import Learner

    return Learner(config, setup.start_process(config))


def logprobs(learner: Any, rollouts: list[Rollout]) -> list[Tensor]:
    """float32 [response length] of every response under the student, at temperature 1."""
    scores = learner.scorer.logprobs(
        learner.student.ddp,
        rollouts,
        list(range(len(rollouts))),
        temperature=1.0,
        vocab_size=learner.student.vocab_size,
    )
    return [scores[index] for index in range(len(rollouts))]


def update(learner: Any, rollouts: list[Rollout]) -> dict[str, float]:
    """One update on graded rollouts, whole groups side by side, the same list on every rank.

    Returns the loss and the gradient's norm, of all replicas.
    """
    from scope_megatron.parallel import platform
    from scope_megatron.train import observe
    from scope_megatron.train.batch import make_batch

    topology = learner.topology
    replica, replicas = topology.dp_rank, topology.dp_size
    mine = [r for r in rollouts if r.prompt.index % replicas == replica]
    batch, metrics = make_batch(mine, "incorrect"), observe.step_metrics()
    learner.score(batch)
    learner.update(batch, metrics)
    values = metrics.reduce(topology.dp_group, platform.device())
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return {"loss": values["loss/total"], "grad_norm": values["grad_norm"]}


def logprob_and_divergence(
    kind: str, student: Tensor, teacher: Tensor, targets: Tensor, **settings: Any
) -> tuple[Tensor, Tensor]:
    """([T], [T]) of logits [T, W] by the loss head. ``settings``: vocab_size, temperature,
    teacher_temperature, beta, kernel."""
    from scope_megatron.objective import vocab_parallel_logprob_and_divergence

    return vocab_parallel_logprob_and_divergence(
        student,
        targets,
        teacher,
        kind=kind,  # type: ignore[arg-type]
        **settings,
    )
