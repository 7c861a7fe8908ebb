"""SCOPE (arXiv 2604.10688, eq. 6) with its ablations, two of them without a teacher."""

from __future__ import annotations

import torch
from torch import Tensor

from scope_megatron.config import Config
from scope_megatron.learn.algorithms.weighed import Weighed, factors
from scope_megatron.learn.batch import Batch
from scope_megatron.objective.loss import Streams
from scope_megatron.objective.normalize import per_group
from scope_megatron.objective.perplexity import student_weights, teacher_weights


def scope(batch: Batch, config: Config) -> Weighed:
    """Correct responses by MLE, incorrect ones by the teacher's KL, both weighted by perplexity.

    ``objective.incorrect: constant`` has no teacher: incorrect responses weigh alike. With ``none``
    they are in no term, but stay in the denominators: the correct path's factors are SCOPE's.
    """
    objective = config.objective
    taught = config.needs_teacher
    compared = batch.group if objective.weight_group == "prompt" else torch.zeros_like(batch.group)
    student = student_weights(
        _mean(batch.student_mean, batch),
        compared,
        batch.routes.correct,
        objective.tau,
        mode=objective.student_weight,
    )
    teacher = teacher_weights(
        _mean(batch.teacher_mean, batch),
        compared,
        batch.routes.incorrect,
        objective.tau,
        mode=objective.teacher_weight if taught else "uniform",
    )
    weights = per_group(student + teacher, batch.routes, batch.group, compared)
    factor = factors(weights, batch.routes, batch, config)
    correct = torch.where(batch.routes.correct, factor, 0.0)
    incorrect = torch.where(batch.routes.incorrect, factor, 0.0)
    likelihood = "mle" if objective.likelihood == "ratio" else "nll"
    terms = {likelihood: correct, **({"kl": incorrect} if taught else {})}
    if objective.incorrect == "constant":
        streams = _constant(incorrect, terms, batch, config)
    else:
        streams = Streams(**terms)
    return Weighed(streams, student, teacher if taught else None, compared)


def _mean(known: Tensor | None, batch: Batch) -> Tensor:
    """[B] mean log-probabilities; zeros for weights that do not read them."""
    return torch.zeros(len(batch)) if known is None else known


def _constant(incorrect: Tensor, terms: dict[str, Tensor], batch: Batch, config: Config) -> Streams:
    """The no-teacher ablation (arXiv 2608.31046): the same negative advantage on every token of an
    incorrect response, or on those to which the student gave little probability."""
    objective = config.objective
    advantage = -objective.constant_advantage * incorrect
    if objective.constant_below is None:
        return Streams(**terms, pg=advantage)
    unlikely = {
        index: (batch.student_logprobs[index].exp() < objective.constant_below).float()
        for index in batch.members(batch.routes.incorrect)
    }
    return Streams(**terms, pg=advantage, tokens={"pg": unlikely})
