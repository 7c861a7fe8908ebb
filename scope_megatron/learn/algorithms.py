"""The algorithms: each only says which weight every response's tokens get in which term.

A stream is a factor per response (zero: not in the term), normalised over the global batch. The
trainer lays it out on the tokens and knows nothing of the algorithm behind it. Weights are of the
whole global batch, so every rank computes the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from scope_megatron.config import Config
from scope_megatron.learn.batch import Batch
from scope_megatron.objective.loss import Streams
from scope_megatron.objective.normalize import local_totals, sequence_token_weights
from scope_megatron.objective.perplexity import student_weights, teacher_weights
from scope_megatron.objective.routing import Routes


@dataclass(frozen=True)
class Weighed:
    """Weights of a batch: a stream per term of the loss."""

    streams: Streams  # [B] float32 factors
    student_weight: Tensor | None = None  # [B] w_i of eq. 4 and 5, for the metrics
    teacher_weight: Tensor | None = None


@dataclass(frozen=True)
class Algorithm:
    """Interface of an algorithm: weighing, and the responses that the frozen model scores."""

    weigh: Callable[[Batch, Config], Weighed]
    frozen_scores: Callable[[Routes], Tensor]  # [B] bool: what the frozen model must score


def _nothing(routes: Routes) -> Tensor:
    return torch.zeros_like(routes.masked)


def _scope(batch: Batch, config: Config) -> Weighed:
    """SCOPE (eq. 6): correct responses by MLE, incorrect by the teacher's KL, both weighted."""
    objective = config.objective
    student = student_weights(
        _mean(batch.student_mean, batch),
        batch.group,
        batch.routes.correct,
        objective.tau,
        mode=objective.student_weight,
    )
    teacher = teacher_weights(
        _mean(batch.teacher_mean, batch),
        batch.group,
        batch.routes.incorrect,
        objective.tau,
        mode=objective.teacher_weight,
    )
    factor = _factors(student + teacher, batch.routes, batch, config)
    streams = Streams(
        mle=torch.where(batch.routes.correct, factor, 0.0),
        kl=torch.where(batch.routes.incorrect, factor, 0.0),
    )
    return Weighed(streams, student_weight=student, teacher_weight=teacher)


def _mean(known: Tensor | None, batch: Batch) -> Tensor:
    """[B] mean log-probabilities; zeros for weights that do not read them."""
    return torch.zeros(len(batch)) if known is None else known


def _opd(batch: Batch, config: Config) -> Weighed:
    """On-policy distillation: eq. 3 on every response, with one weight for all."""
    return Weighed(Streams(kl=_uniform_factors(batch, config)))


def _grpo(batch: Batch, config: Config) -> Weighed:
    """Group-relative advantage (R - mean) / std inside each prompt's group; KL to the reference."""
    factor = _uniform_factors(batch, config)
    coefficient = config.algorithm.kl_coef
    streams = Streams(
        pg=factor * group_advantages(batch),
        kl_ref=factor * coefficient if coefficient > 0 else None,
    )
    return Weighed(streams)


def _kd(batch: Batch, config: Config) -> Weighed:
    """Supervised: the negative log-likelihood of given responses."""
    return Weighed(Streams(nll=_uniform_factors(batch, config)))


def group_advantages(batch: Batch) -> Tensor:
    """[B] (R_i - mean R) / (std R + 1e-6) over the judged responses of each group, 0 for others.

    The reward is 1 on the correct path and 0 on the incorrect one: a truncated response counts as
    its route says.
    """
    routed = batch.routes.routed.float()
    rewards = batch.routes.correct.float()
    groups = int(batch.group.max()) + 1 if len(batch) else 0

    def total(values: Tensor) -> Tensor:
        return torch.zeros(groups).index_add(0, batch.group, values)[batch.group]

    count = total(routed).clamp_min(1)
    mean = total(rewards * routed) / count
    variance = total((rewards - mean) ** 2 * routed) / count
    return (rewards - mean) / (variance.sqrt() + 1e-6) * routed


def _uniform_factors(batch: Batch, config: Config) -> Tensor:
    """[B] the same weight for every routed response of a group, whatever its path."""
    routes = batch.routes
    one_path = replace(routes, correct=torch.zeros_like(routes.correct), incorrect=routes.routed)
    zeros = torch.zeros(len(batch))
    weights = teacher_weights(zeros, batch.group, one_path.incorrect, mode="uniform")
    return _factors(weights, one_path, batch, config)


def _factors(weights: Tensor, routes: Routes, batch: Batch, config: Config) -> Tensor:
    totals = local_totals(batch.routes, batch.group, batch.lengths)
    return sequence_token_weights(
        weights, routes, batch.group, batch.lengths, config.objective.normalization, totals
    ).float()


ALGORITHMS: dict[str, Algorithm] = {
    "scope": Algorithm(_scope, frozen_scores=lambda routes: routes.incorrect),
    "opd": Algorithm(_opd, frozen_scores=lambda routes: routes.routed),
    "grpo": Algorithm(_grpo, frozen_scores=lambda routes: routes.routed),
    "kd": Algorithm(_kd, frozen_scores=_nothing),
}
