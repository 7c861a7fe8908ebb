"""The baselines: on-policy distillation, group-relative advantages, supervised training."""

from __future__ import annotations

from scope_megatron.config import Config
from scope_megatron.learn.algorithms.groups import group_advantages
from scope_megatron.learn.algorithms.weighed import Weighed, uniform_factors
from scope_megatron.learn.batch import Batch
from scope_megatron.objective.loss import Streams


def opd(batch: Batch, config: Config) -> Weighed:
    """On-policy distillation: eq. 3 on every response, with one weight for all."""
    return Weighed(Streams(kl=uniform_factors(batch, config)))


def grpo(batch: Batch, config: Config) -> Weighed:
    """Group-relative advantage (R - mean) / std inside each prompt's group; KL to the reference."""
    factor = uniform_factors(batch, config)
    coefficient = config.algorithm.kl_coef
    streams = Streams(
        pg=factor * group_advantages(batch, config),
        kl_ref=factor * coefficient if coefficient > 0 else None,
    )
    return Weighed(streams)


def kd(batch: Batch, config: Config) -> Weighed:
    """Supervised: the negative log-likelihood of given responses."""
    return Weighed(Streams(nll=uniform_factors(batch, config)))
