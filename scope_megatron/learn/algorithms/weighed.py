"""The result of an algorithm, and the factors that its weights become."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from scope_megatron.config import Config
from scope_megatron.learn.batch import Batch
from scope_megatron.objective.loss import Streams
from scope_megatron.objective.normalize import local_totals, sequence_token_weights
from scope_megatron.objective.perplexity import teacher_weights
from scope_megatron.objective.routing import Routes


@dataclass(frozen=True)
class Weighed:
    """Weights of a batch: a stream per term of the loss."""

    streams: Streams  # [B] float32 factors
    student_weight: Tensor | None = None  # [B] w_i of eq. 4 and 5, for the metrics
    teacher_weight: Tensor | None = None
    compared: Tensor | None = None  # [B] label of what they sum to 1 over; None: the prompt's group


@dataclass(frozen=True)
class Algorithm:
    """Interface of an algorithm: weighing, and the responses that the frozen model scores."""

    weigh: Callable[[Batch, Config], Weighed]
    frozen_scores: Callable[[Routes], Tensor]  # [B] bool: what the frozen model must score


def factors(weights: Tensor, routes: Routes, batch: Batch, config: Config) -> Tensor:
    """[B] factors of weights that sum to 1 over the paths of ``routes``."""
    filtered = config.algorithm.group_filter != "none"
    totals = local_totals(batch.routes, batch.group, batch.lengths, filtered=filtered)
    return sequence_token_weights(
        weights, routes, batch.group, batch.lengths, config.objective.normalization, totals
    ).float()


def uniform_factors(batch: Batch, config: Config) -> Tensor:
    """[B] the same weight for every routed response of a group, whatever its path."""
    routes = batch.routes
    one_path = replace(routes, correct=torch.zeros_like(routes.correct), incorrect=routes.routed)
    zeros = torch.zeros(len(batch))
    weights = teacher_weights(zeros, batch.group, one_path.incorrect, mode="uniform")
    return factors(weights, one_path, batch, config)
