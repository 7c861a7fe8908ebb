"""Weights from Megatron to the engine, and the proof that they arrived."""

from __future__ import annotations

import torch

from scope_megatron.config import Config
from scope_megatron.engine.source import ModelWeights
from scope_megatron.engine.vllm import Engine
from scope_megatron.learn.models import Student
from scope_megatron.learn.scorer import Scorer
from scope_megatron.parallel import platform
from scope_megatron.parallel.agree import all_max
from scope_megatron.parallel.topology import Topology
from scope_megatron.types import Rollout

# rollout.engine.logprob_tolerance null, by the parameters' type
TOLERANCE = {torch.float32: 0.02, torch.bfloat16: 0.1}


class WeightsOutOfSync(ValueError):
    """The engine does not compute with the trainer's weights."""


def sync_weights(student: Student, engine: Engine, config: Config, topology: Topology) -> None:
    """The student's weights to every engine, in memory and in buckets (collective)."""
    platform.release_cached_memory()
    bucket = config.engine.bucket_mib * 2**20
    engine.load_weights(ModelWeights(student.model, student.hf, topology, bucket))


def tolerance(config: Config) -> float:
    """The largest mean difference of log-probabilities at which the weights count as the same."""
    given = config.engine.logprob_tolerance
    if given is not None:
        return given
    return TOLERANCE[platform.resolve_dtype(config.model.dtype)]


def check_sync(
    student: Student, engine: Engine, rollouts: list[Rollout], config: Config, scorer: Scorer
) -> tuple[float, float]:
    """Compare the engine's log-probabilities of a few sequences with the trainer's (collective).

    Both score the response tokens at temperature 1. Returns the largest and the mean absolute
    difference over all engines; raises :class:`WeightsOutOfSync` beyond the limit.
    """
    chosen = [r for r in rollouts if r.token_ids][: config.engine.check_samples]
    members = list(range(len(chosen)))
    spec = scorer.head.spec.alone().at(1.0)
    ours = scorer.score(student, dict(enumerate(chosen)), members, spec).logprobs
    theirs = engine.score([[*r.prompt.token_ids, *r.token_ids] for r in chosen])
    largest, total, count = 0.0, 0.0, 0
    for index, rollout in enumerate(chosen):
        engine_side = torch.tensor(theirs[index][len(rollout.prompt.token_ids) - 1 :])
        gap = (ours[index] - engine_side).abs()
        largest = max(largest, float(gap.max()))
        total, count = total + float(gap.sum()), count + gap.numel()
    largest, mean = all_max([largest, total / max(count, 1)])
    limit = tolerance(config)
    if mean > limit:
        raise WeightsOutOfSync(
            f"rollout.engine.logprob_tolerance: after the weight transfer the engine's "
            f"log-probabilities differ from the trainer's by {mean:.3g} on average, more than "
            f"{limit:.3g}; the engine works with other weights (raise the limit only if the "
            "precision differs on purpose)"
        )
    return largest, mean
