"""Every algorithm under the name that algorithm.name has for it, and the switches around it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from scope_megatron.config import Config
from scope_megatron.learn.algorithms import baselines, hybrids, scope
from scope_megatron.learn.algorithms.groups import kept_routes, pass_rate_weights
from scope_megatron.learn.algorithms.tokens import with_teacher_tokens
from scope_megatron.learn.algorithms.weighed import Algorithm, Weighed
from scope_megatron.learn.batch import Batch
from scope_megatron.objective.loss import Streams
from scope_megatron.objective.normalize import microbatch_scales
from scope_megatron.objective.routing import Routes
from scope_megatron.types import PackedBatch


def weigh(batch: Batch, config: Config) -> Weighed:
    """The algorithm's streams, of the groups that are kept, with the switches that any may have."""
    batch = replace(batch, routes=kept_routes(batch, config))
    batch = replace(batch, lengths=_counted(batch, config))
    weighed = ALGORITHMS[config.algorithm.name].weigh(batch, config)
    streams = with_teacher_tokens(weighed.streams, batch, config)
    by_prompt = pass_rate_weights(batch, config)
    if by_prompt is not None:
        streams = streams.scaled({name: by_prompt for name, _ in streams})
    return replace(weighed, streams=streams)


def pack_streams(streams: Streams, batch: Batch, config: Config, pack: PackedBatch) -> Streams:
    """The streams as a pack has them: with normalization microbatch_mean the denominators are its
    own. Groups that are left out count nowhere, nor do tokens behind a prefix."""
    if config.objective.normalization != "microbatch_mean":
        return streams
    routes, members = kept_routes(batch, config), list(pack.members)
    lengths = _counted(replace(batch, routes=routes), config)[members].tolist()
    correct = routes.correct[members].tolist()
    return streams.scaled(microbatch_scales(lengths, correct, int(routes.routed.sum())))


def _counted(batch: Batch, config: Config) -> Tensor:
    """[B] lengths for the denominators: a prefix where only the teacher's term has the response."""
    prefix, name = config.objective.prefix_tokens, config.algorithm.name
    if prefix is None or name not in ("scope", "opd"):
        return batch.lengths
    taught = batch.routes.incorrect if name == "scope" else batch.routes.routed
    return torch.where(taught, batch.lengths.clamp_max(prefix), batch.lengths)


def _nothing(routes: Routes) -> Tensor:
    return torch.zeros_like(routes.masked)


def _incorrect(routes: Routes) -> Tensor:
    return routes.incorrect


def _routed(routes: Routes) -> Tensor:
    return routes.routed


ALGORITHMS: dict[str, Algorithm] = {
    "scope": Algorithm(scope.scope, frozen_scores=_incorrect),
    "opd": Algorithm(baselines.opd, frozen_scores=_routed),
    "grpo": Algorithm(baselines.grpo, frozen_scores=_routed),
    "kd": Algorithm(baselines.kd, frozen_scores=_nothing),
    "kdrl": Algorithm(hybrids.kdrl, frozen_scores=_routed),
    "rlsd": Algorithm(hybrids.rlsd, frozen_scores=_routed),
    "sdar": Algorithm(hybrids.sdar, frozen_scores=_routed),
    "srpo": Algorithm(hybrids.srpo, frozen_scores=_incorrect),
}
