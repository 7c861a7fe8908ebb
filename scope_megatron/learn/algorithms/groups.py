"""Numbers of a prompt's group, from its verdicts and lengths alone."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from scope_megatron.config import Config
from scope_megatron.learn.batch import Batch
from scope_megatron.objective.routing import Routes


def group_advantages(batch: Batch, config: Config) -> Tensor:
    """[B] (R_i - mean R) / (std R + 1e-6) over the judged responses of each group, 0 for others.

    The reward is 1 on the correct path and 0 on the incorrect one: a truncated response counts as
    its route says. Overlong shaping (DAPO, arXiv 2503.14476, eq. 13) takes from it in groups with
    responses of both paths: in others the advantage is 0. DAPO leaves those out by accuracy, and a
    std of lengths alone would make much of one token.
    """
    routed = batch.routes.routed.float()
    shaped = torch.where(_mixed(batch), _overlong(batch, config), 0.0)
    rewards = batch.routes.correct.float() - shaped
    count = _total(routed, batch).clamp_min(1)
    mean = _total(rewards * routed, batch) / count
    variance = _total((rewards - mean) ** 2 * routed, batch) / count
    return (rewards - mean) / (variance.sqrt() + 1e-6) * routed


def kept_routes(batch: Batch, config: Config) -> Routes:
    """The paths without the groups that ``algorithm.group_filter`` leaves out."""
    routes = batch.routes
    if config.algorithm.group_filter == "none":
        return routes
    mixed = _mixed(batch)
    correct, incorrect = routes.correct & mixed, routes.incorrect & mixed
    return replace(routes, correct=correct, incorrect=incorrect, masked=~(correct | incorrect))


def pass_rate_weights(batch: Batch, config: Config) -> Tensor | None:
    """[B] p^alpha (1-p)^beta of the response's prompt, p its pass rate, over the mean of prompts
    with a judged response (PACED, arXiv 2603.11178); None where it is 1 for all."""
    alpha, beta = config.algorithm.pass_rate_alpha, config.algorithm.pass_rate_beta
    if alpha == beta == 0:
        return None
    routed = batch.routes.routed.double()
    count = _total(routed, batch)
    rate = _total(batch.routes.correct.double(), batch) / count.clamp_min(1)
    weight = torch.where(count > 0, rate**alpha * (1.0 - rate) ** beta, 0.0)
    share = routed / count.clamp_min(1)  # sums to 1 over a prompt
    mean = (share * weight).sum() / share.sum().clamp_min(1)
    return (weight / mean.clamp_min(1e-12)).float()


def _mixed(batch: Batch) -> Tensor:
    """[B] bool: the response's group has correct and incorrect ones."""
    correct, incorrect = batch.routes.correct.float(), batch.routes.incorrect.float()
    return (_total(correct, batch) > 0) & (_total(incorrect, batch) > 0)


def _overlong(batch: Batch, config: Config) -> Tensor:
    """[B] 0 up to L_max - buffer tokens, then linearly to the penalty at L_max."""
    algorithm = config.algorithm
    if algorithm.overlong_buffer == 0 or config.rollout is None:
        return torch.zeros(len(batch))
    start = config.rollout.max_response_tokens - algorithm.overlong_buffer
    over = (batch.lengths - start).float() / algorithm.overlong_buffer
    return algorithm.overlong_penalty * over.clamp(0.0, 1.0)


def _total(values: Tensor, batch: Batch) -> Tensor:
    """[B] sum over the group that a response is of."""
    groups = int(batch.group.max()) + 1 if len(batch) else 0
    return values.new_zeros(groups).index_add(0, batch.group, values)[batch.group]
