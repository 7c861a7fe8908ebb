"""What training and sampling ranks tell each other, apart from tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from scope_megatron.engine.parcels import Parcel, TrainerShards
from scope_megatron.types import Prompt, Rollout, Verdict

# What responses are sampled for: ("train", step from 1), or ("eval", count, name of the set).
Errand = tuple[str | int, ...]


# From rank 0 to the sampling ranks: each is carried out when those before it are.


@dataclass(frozen=True)
class SampleErrand:
    """Sample and grade the prompts of an errand."""

    errand: Errand


@dataclass(frozen=True)
class TakeParameters:
    """New parameters come over the bridge; ``shards`` describes them once, at the first."""

    shards: TrainerShards | None = None


@dataclass(frozen=True)
class ScoreSequences:
    """Log-probabilities of these sequences, from every engine."""

    sequences: list[list[int]]


@dataclass(frozen=True)
class EndSampling:
    """No more is asked."""


SamplingOrder = SampleErrand | TakeParameters | ScoreSequences | EndSampling


# From a sampling rank: to the replica that trains on a response, all else to rank 0.


@dataclass(frozen=True)
class SamplerHello:
    """The first thing a sampling rank says."""

    rank: int  # among the sampling ranks
    node: str
    found: dict[str, str]  # what it found on its machine, by setting


@dataclass(frozen=True)
class GradedResponse:
    """A graded response. The receiver knows the prompt by its place in the errand."""

    errand: Errand
    position: int
    sample: int
    token_ids: list[int]
    engine_logprobs: list[float]
    finished: bool
    text: str
    verdict: Verdict | None

    @classmethod
    def of(cls, errand: Errand, position: int, rollout: Rollout) -> GradedResponse:
        return cls(
            errand,
            position,
            rollout.sample,
            rollout.token_ids,
            rollout.engine_logprobs,
            rollout.finished,
            rollout.text,
            rollout.verdict,
        )

    def rollout(self, prompt: Prompt, version: int | None = None) -> Rollout:
        """As the trainer has it. ``version``: steps done by the parameters that sampled it."""
        return Rollout(
            prompt=prompt,
            sample=self.sample,
            token_ids=self.token_ids,
            engine_logprobs=self.engine_logprobs,
            finished=self.finished,
            text=self.text,
            verdict=self.verdict,
            version=version,
        )


@dataclass(frozen=True)
class ErrandDone:
    """A sampling rank has sent the last response of an errand."""

    errand: Errand
    sampling_s: float
    grading_s: float  # after the last response
    graded_s: float  # of grading in all
    signum: int = 0  # a signal that it got: the run is asked to stop


@dataclass(frozen=True)
class EngineScores:
    """An engine's answer to :class:`ScoreSequences`."""

    logprobs: list[list[float]]


@dataclass(frozen=True)
class Agreed:
    """Whether any sampling rank objects (first sampling rank)."""

    flag: bool


@dataclass(frozen=True)
class WantedParcels:
    """The parcels that the engines take, once their plan is made (first sampling rank)."""

    parcels: list[Parcel]
    engines: int
    ranks: int  # of each engine


# From rank 0 to the first sampling rank, which tells the others.


@dataclass(frozen=True)
class Packet:
    """Names, shapes and types of the full tensors that follow in one piece; none: the end."""

    tensors: list[tuple[str, tuple[int, ...], torch.dtype]]
    size: int  # bytes
