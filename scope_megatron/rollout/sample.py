"""Responses for the prompts of one data-parallel replica, from all engines on its ranks.

The tensor x pipeline ranks of a replica hold (tensor / engine.tensor) x pipeline engines. Each
takes every n-th prompt with its whole group; afterwards all ranks hold all rollouts, graded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from scope_megatron.data.tokenizer import Tokenizer
from scope_megatron.engine.vllm import Engine, Sampling
from scope_megatron.parallel.agree import from_all
from scope_megatron.parallel.topology import Topology
from scope_megatron.rollout.verify import Verifiers
from scope_megatron.types import Prompt, Rollout, Verdict


@dataclass(frozen=True)
class EnginePlace:
    """Index of this rank's engine among the engines of its data-parallel replica."""

    index: int
    count: int
    is_leader: bool  # one rank of each engine speaks for it

    @classmethod
    def of(cls, topology: Topology, engine_tensor: int) -> EnginePlace:
        per_stage = topology.tp_size // engine_tensor
        return cls(
            index=topology.pp_rank * per_stage + topology.tp_rank // engine_tensor,
            count=topology.pp_size * per_stage,
            is_leader=topology.tp_rank % engine_tensor == 0,
        )


def sample(
    engine: Engine,
    prompts: list[Prompt],
    sampling: Sampling,
    topology: Topology,
    place: EnginePlace,
) -> list[Rollout]:
    """Groups of rollouts in the order of ``prompts``; collective over the model-parallel ranks."""
    mine = engine.generate(prompts[place.index :: place.count], sampling)
    by_engine = _gather(mine if place.is_leader else None, topology)
    groups: list[list[Rollout]] = [[] for _ in prompts]
    for start, rollouts in enumerate(by_engine):
        for k, rollout in enumerate(rollouts):
            groups[start + k // sampling.samples * place.count].append(rollout)
    return [rollout for group in groups for rollout in group]


def grade(
    rollouts: list[Rollout], verifiers: Verifiers, tokenizer: Tokenizer, topology: Topology
) -> None:
    """Fill ``text`` and ``verdict`` of every rollout; each model-parallel rank grades its share."""
    rank, size = dist.get_rank(topology.mp_group), dist.get_world_size(topology.mp_group)
    for rollout in rollouts:
        rollout.text = tokenizer.decode(rollout.token_ids)
    share = rollouts[rank::size]
    verdicts = verifiers.grade([(rollout.text, rollout.prompt) for rollout in share])
    for start, theirs in enumerate(_gather(verdicts, topology)):
        for rollout, verdict in zip(rollouts[start::size], theirs, strict=True):
            rollout.verdict = Verdict(verdict)


def _gather(value: Any, topology: Topology) -> list[Any]:
    """Every model-parallel rank's value that is not None, in rank order.

    Ranks of the group ascend with the tensor rank first and the pipeline rank second, which is the
    order of :class:`EnginePlace`.
    """
    return [item for item in from_all(value, topology.mp_group) if item is not None]
