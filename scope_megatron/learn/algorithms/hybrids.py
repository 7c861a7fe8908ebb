"""The task's reward together with a teacher: kdrl, rlsd, sdar, srpo."""

from __future__ import annotations

import torch
from torch import Tensor

from scope_megatron.config import Config
from scope_megatron.learn.algorithms.groups import group_advantages
from scope_megatron.learn.algorithms.tokens import gaps
from scope_megatron.learn.algorithms.weighed import Weighed, uniform_factors
from scope_megatron.learn.batch import Batch
from scope_megatron.objective.loss import Streams

_GATE = 5.0  # sdar's slope, as published


def kdrl(batch: Batch, config: Config) -> Weighed:
    """KDRL (arXiv 2506.02208): group-relative advantages plus teacher_coef x the teacher's KL."""
    factor = uniform_factors(batch, config)
    advantage = factor * group_advantages(batch, config)
    return Weighed(Streams(pg=advantage, kl=factor * config.algorithm.teacher_coef))


def rlsd(batch: Batch, config: Config) -> Weighed:
    """RLSD (arXiv 2604.03128): A_t = A ((1-l) + l clip(exp(sign(A) d_t), 1 - eps, 1 + eps)) with
    d = log pi_T - log pi_S of the sampled token."""
    algorithm, advantages = config.algorithm, group_advantages(batch, config)

    def scale(index: int, gap: Tensor) -> Tensor:
        ratio = torch.exp(advantages[index].sign() * gap)
        bounded = ratio.clamp(1.0 - algorithm.rlsd_eps, 1.0 + algorithm.rlsd_eps)
        return 1.0 - algorithm.rlsd_lambda + algorithm.rlsd_lambda * bounded

    scales = {index: scale(index, gap) for index, gap in gaps(batch).items()}
    factor = uniform_factors(batch, config) * advantages
    return Weighed(Streams(pg=factor, tokens={"pg": scales}))


def sdar(batch: Batch, config: Config) -> Weighed:
    """SDAR (arXiv 2605.15155): group-relative advantages, and c sigmoid(5 d_t) d_t per token with
    the gate detached."""
    factor = uniform_factors(batch, config)
    gates = {index: torch.sigmoid(_GATE * gap) for index, gap in gaps(batch).items()}
    streams = Streams(
        pg=factor * group_advantages(batch, config),
        pull=factor * config.algorithm.teacher_coef,
        tokens={"pull": gates},
    )
    return Weighed(streams)


def srpo(batch: Batch, config: Config) -> Weighed:
    """SRPO (arXiv 2604.02288): correct responses by their group-relative advantage, incorrect ones
    by the teacher's KL with the weight exp(-beta H_t) per token, H the teacher's entropy."""
    factor, routes = uniform_factors(batch, config), batch.routes
    sure = {
        index: torch.exp(-config.algorithm.srpo_beta * batch.teacher_token_entropy[index])
        for index in batch.members(routes.incorrect)
    }
    streams = Streams(
        pg=torch.where(routes.correct, factor * group_advantages(batch, config), 0.0),
        kl=torch.where(routes.incorrect, factor * config.algorithm.teacher_coef, 0.0),
        tokens={"kl": sure},
    )
    return Weighed(streams)
