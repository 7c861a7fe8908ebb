"""Responses for the prompts of one data-parallel replica, from all engines on its ranks.

The ranks of a replica hold (tensor / engine.tensor) x context x pipeline engines. Each
takes every n-th prompt with its whole group; afterwards all ranks hold all rollouts. Responses are
graded as they end, by the ranks of the engine that sampled them.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from scope_megatron.config import Config
from scope_megatron.engine.interface import Engine, Sampling, request_seed
from scope_megatron.parallel.agree import from_all
from scope_megatron.parallel.topology import Topology
from scope_megatron.rollout.grading import Grading
from scope_megatron.trace.spans import span
from scope_megatron.types import Prompt, Rollout


def training_sampling(config: Config, step: int) -> Sampling:
    """How responses of ``step`` (from 1) are sampled, as ``rollout`` says."""
    settings = config.rollout
    assert settings is not None
    return Sampling(
        samples=settings.group_size,
        max_tokens=settings.max_response_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        seed=request_seed(config.seed, step - 1),  # from 0, as PromptOrder
    )


def evaluation_sampling(config: Config) -> Sampling:
    """How ``evaluation`` says that responses are sampled: alike at every call."""
    settings, limit = config.evaluation, config.evaluation_response_tokens
    assert limit is not None
    return Sampling(
        samples=settings.samples,
        max_tokens=limit,
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        seed=config.seed,
        logprobs=False,
    )


@dataclass(frozen=True)
class EnginePlace:
    """Index of this rank's engine among the engines of its data-parallel replica."""

    index: int
    count: int
    rank: int  # of this process among its engine's; the first speaks for the engine
    ranks: int

    @property
    def is_leader(self) -> bool:
        return self.rank == 0

    @classmethod
    def of(cls, topology: Topology, engine_tensor: int) -> EnginePlace:
        per_stage = topology.tp_size // engine_tensor
        return cls(
            index=(topology.pp_rank * topology.cp_size + topology.cp_rank) * per_stage
            + topology.tp_rank // engine_tensor,
            count=topology.pp_size * topology.cp_size * per_stage,
            rank=topology.tp_rank % engine_tensor,
            ranks=engine_tensor,
        )

    @classmethod
    def alone(cls, rank: int, ranks: int, engine_tensor: int) -> EnginePlace:
        """Of rank ``rank`` among ``ranks`` that only sample, all for the same prompts."""
        index, place = divmod(rank, engine_tensor)
        return cls(index, ranks // engine_tensor, place, engine_tensor)


@dataclass
class Sampled:
    """The responses of a replica, while the last of them are graded."""

    rollouts: list[Rollout]  # groups in the order of their prompts
    by_engine: list[list[Rollout]]  # the same objects, in the order each engine was asked
    grading: Grading
    graded_here: list[Rollout]  # this rank's share of its engine's
    seconds: float  # that this rank's engine took
    grading_s: float = 0.0  # of waiting for verdicts after that


def sample(
    engine: Engine,
    prompts: list[Prompt],
    sampling: Sampling,
    topology: Topology,
    place: EnginePlace,
    grading: Grading,
) -> Sampled:
    """Groups of responses for ``prompts``; collective over the model-parallel ranks."""

    def hand_over(number: int, rollout: Rollout) -> None:
        if number % place.ranks == place.rank:
            grading.put(rollout)

    begun = time.perf_counter()
    share = prompts[place.index :: place.count]
    with span("sample", prompts=len(share)):
        mine = engine.generate(share, sampling, hand_over)
    seconds = time.perf_counter() - begun
    with span("wait for engines"):
        by_engine = _gather(mine if place.is_leader else None, topology)
    groups: list[list[Rollout]] = [[] for _ in prompts]
    for start, rollouts in enumerate(by_engine):
        for k, rollout in enumerate(rollouts):
            groups[start + k // sampling.samples * place.count].append(rollout)
    ordered = [rollout for group in groups for rollout in group]
    return Sampled(ordered, by_engine, grading, mine[place.rank :: place.ranks], seconds)


def grade(sampled: Sampled, topology: Topology, place: EnginePlace) -> list[Rollout]:
    """Wait for the last verdicts; the rollouts, each with ``text`` and ``verdict``, on all ranks.

    Collective over the model-parallel ranks.
    """
    begun = time.perf_counter()
    sampled.grading.finish()
    sampled.grading_s = time.perf_counter() - begun
    mine = [(rollout.text, rollout.verdict) for rollout in sampled.graded_here]
    for rank, judged in enumerate(_gather(mine, topology)):
        engine, first = divmod(rank, place.ranks)
        theirs = sampled.by_engine[engine][first :: place.ranks]
        for rollout, (text, verdict) in zip(theirs, judged, strict=True):
            rollout.text, rollout.verdict = text, verdict
    return sampled.rollouts


def _gather(value: Any, topology: Topology) -> list[Any]:
    """Every model-parallel rank's value that is not None, in rank order.

    Ranks of the group ascend with the tensor rank first, then context and pipeline, which is the
    order of :class:`EnginePlace`.
    """
    return [item for item in from_all(value, topology.mp_group) if item is not None]
