"""One step of a learner on given rollouts, without an engine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scope_megatron.learn.batch import Batch
    from scope_megatron.logging.metrics import StepMetrics
    from scope_megatron.types import Rollout

ALONE: Any = SimpleNamespace(dp_size=1, dp_rank=0)  # a topology of one replica


def batch_of(rollouts: list[Rollout], topology: Any = ALONE) -> Batch:
    """The rollouts of this replica, routed and dealt; hidden size as in the tiny models."""
    from scope_megatron.learn.deal import Arithmetic, make_batch

    return make_batch(rollouts, "incorrect", topology, Arithmetic.of(64))


def one_step(learner: Any, rollouts: list[Rollout]) -> tuple[Batch, StepMetrics]:
    """Score, weigh and update as the trainer does; (the batch, the update's metrics)."""
    from scope_megatron.learn import observe

    batch = batch_of(rollouts, learner.topology)
    metrics = observe.step_metrics(learner.config.teacher_tags)
    learner.score(batch)
    learner.update(batch, learner.weigh(batch), metrics)
    return batch, metrics
