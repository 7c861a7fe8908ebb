"""The algorithms: each only says which weight every response's tokens get in which term.

A stream is a factor per response (zero: not in the term), normalised over the global batch. The
trainer lays it out on the tokens and knows nothing of the algorithm behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from scope_megatron.config import Config
from scope_megatron.objective.normalize import Totals, sequence_token_weights
from scope_megatron.objective.perplexity import student_weights, teacher_weights
from scope_megatron.objective.routing import Routes
from scope_megatron.train.batch import Batch


@dataclass(frozen=True)
class SequenceStreams:
    """A factor per response [B] float32 for each term of the loss; None: nobody is in the term."""

    mle: Tensor | None = None
    kl: Tensor | None = None
    pg: Tensor | None = None
    nll: Tensor | None = None
    kl_ref: Tensor | None = None
    student_weight: Tensor | None = None  # w_i of eq. 4 and 5, for the metrics
    teacher_weight: Tensor | None = None

    def active(self) -> Tensor:
        """[B] bool: the responses that enter any term."""
        streams = [s for s in (self.mle, self.kl, self.pg, self.nll, self.kl_ref) if s is not None]
        return torch.stack([stream != 0 for stream in streams]).any(0)


@dataclass(frozen=True)
class Algorithm:
    """What the trainer asks an algorithm."""

    streams: Callable[[Batch, Config, Totals], SequenceStreams]
    frozen_scores: Callable[[Routes], Tensor]  # [B] bool: what the frozen model must score


def _nothing(routes: Routes) -> Tensor:
    return torch.zeros_like(routes.masked)


def _scope(batch: Batch, config: Config, totals: Totals) -> SequenceStreams:
    """SCOPE (eq. 6): correct responses by MLE, incorrect by the teacher's KL, both weighted."""
    objective = config.objective
    student = student_weights(
        batch.mean_logprob(batch.old_logprobs),
        batch.group,
        batch.routes.correct,
        objective.tau,
        mode=objective.student_weight,
    )
    teacher = teacher_weights(
        batch.mean_logprob(batch.teacher_logprobs),
        batch.group,
        batch.routes.incorrect,
        objective.tau,
        mode=objective.teacher_weight,
    )
    factor = _factors(student + teacher, batch.routes, batch, config, totals)
    return SequenceStreams(
        mle=torch.where(batch.routes.correct, factor, 0.0),
        kl=torch.where(batch.routes.incorrect, factor, 0.0),
        student_weight=student,
        teacher_weight=teacher,
    )


def _opd(batch: Batch, config: Config, totals: Totals) -> SequenceStreams:
    """On-policy distillation: eq. 3 on every response, with one weight for all."""
    return SequenceStreams(kl=_uniform_factors(batch, config, totals))


def _grpo(batch: Batch, config: Config, totals: Totals) -> SequenceStreams:
    """Group-relative advantage (R - mean) / std inside each prompt's group; KL to the reference."""
    factor = _uniform_factors(batch, config, totals)
    coefficient = config.algorithm.kl_coef
    return SequenceStreams(
        pg=factor * group_advantages(batch),
        kl_ref=factor * coefficient if coefficient > 0 else None,
    )


def _kd(batch: Batch, config: Config, totals: Totals) -> SequenceStreams:
    """Supervised: the negative log-likelihood of given responses."""
    return SequenceStreams(nll=_uniform_factors(batch, config, totals))


def group_advantages(batch: Batch) -> Tensor:
    """[B] (R_i - mean R) / (std R + 1e-6) over the judged responses of each group, 0 for others.

    The reward is 1 on the correct path and 0 on the incorrect one: a truncated response counts as
    its route says.
    """
    routed = batch.routes.routed.float()
    rewards = batch.routes.correct.float()
    groups = int(batch.group.max()) + 1 if len(batch.rollouts) else 0

    def total(values: Tensor) -> Tensor:
        return torch.zeros(groups).index_add(0, batch.group, values)[batch.group]

    count = total(routed).clamp_min(1)
    mean = total(rewards * routed) / count
    variance = total((rewards - mean) ** 2 * routed) / count
    return (rewards - mean) / (variance.sqrt() + 1e-6) * routed


def _uniform_factors(batch: Batch, config: Config, totals: Totals) -> Tensor:
    """[B] the same weight for every routed response of a group, whatever its path."""
    routes = batch.routes
    one_path = replace(routes, correct=torch.zeros_like(routes.correct), incorrect=routes.routed)
    weights = teacher_weights(
        torch.zeros(len(batch.rollouts)), batch.group, one_path.incorrect, mode="uniform"
    )
    return _factors(weights, one_path, batch, config, totals)


def _factors(
    weights: Tensor, routes: Routes, batch: Batch, config: Config, totals: Totals
) -> Tensor:
    return sequence_token_weights(
        weights, routes, batch.group, batch.lengths, config.objective.normalization, totals
    ).float()


ALGORITHMS: dict[str, Algorithm] = {
    "scope": Algorithm(_scope, frozen_scores=lambda routes: routes.incorrect),
    "opd": Algorithm(_opd, frozen_scores=lambda routes: routes.routed),
    "grpo": Algorithm(_grpo, frozen_scores=lambda routes: routes.routed),
    "kd": Algorithm(_kd, frozen_scores=_nothing),
}
