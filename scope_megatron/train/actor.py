"""The acting half of a step: responses sampled by the engine and graded; parameters sent to it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scope_megatron.config import Config
from scope_megatron.data.dataset import PromptDataset
from scope_megatron.data.tokenizer import Tokenizer
from scope_megatron.engine.interface import Sampling
from scope_megatron.engine.source import ModelParameters
from scope_megatron.learn.models import Student
from scope_megatron.learn.scorer import Scorer
from scope_megatron.logging.metrics import StepMetrics
from scope_megatron.parallel import platform
from scope_megatron.parallel.agree import all_max
from scope_megatron.parallel.topology import Topology
from scope_megatron.rollout.grading import Grading
from scope_megatron.rollout.sample import (
    EnginePlace,
    Sampled,
    evaluation_sampling,
    grade,
    sample,
    training_sampling,
)
from scope_megatron.rollout.verify import Verifiers
from scope_megatron.trace.spans import span
from scope_megatron.train import setup
from scope_megatron.train.acting import Evaluated, Meanwhile
from scope_megatron.train.evaluate import join_sets, share_of_replica, summarize
from scope_megatron.types import Prompt, Rollout

# rollout.engine.logprob_tolerance null, by the parameters' type
TOLERANCE = {torch.float32: 0.02, torch.bfloat16: 0.1}


class ParametersOutOfSync(ValueError):
    """The engine does not compute with the trainer's parameters."""


def tolerance(config: Config) -> float:
    """Largest mean difference of scores at which engine and trainer count as having the same
    parameters."""
    given = config.engine.logprob_tolerance
    return TOLERANCE[platform.resolve_dtype(config.model.dtype)] if given is None else given


class Actor:
    """This rank's engine and verifiers. Every method is collective over model-parallel ranks."""

    waits_in = frozenset[str]()
    signum = 0

    def __init__(
        self, config: Config, tokenizer: Tokenizer, topology: Topology, verifiers: Verifiers
    ) -> None:
        self.config, self.tokenizer, self.topology = config, tokenizer, topology
        self.engine = setup.build_engine(config, tokenizer)
        self.place = EnginePlace.of(topology, config.engine.tensor)
        self.verifiers = verifiers
        self._sampled: Sampled | None = None  # in this step

    def sample(
        self, prompts: list[Prompt], step: int, meanwhile: Meanwhile | None = None
    ) -> Sampled:
        """A group of responses for each prompt, as ``rollout`` says; then the engine sleeps.

        Each response is graded as soon as it ends; :meth:`grade` waits for the last ones.
        """
        sampled = self._sampled = self._sample(prompts, training_sampling(self.config, step))
        self.rest()
        return sampled

    def _sample(self, prompts: list[Prompt], sampling: Sampling) -> Sampled:
        grading = Grading(self.verifiers, self.tokenizer)
        return sample(self.engine, prompts, sampling, self.topology, self.place, grading)

    def rest(self) -> None:
        """The engine sleeps: nobody asks it before it gets weights again."""
        self.engine.sleep()

    def grade(self, sampled: Sampled) -> list[Rollout]:
        """The rollouts, each with its text and verdict."""
        return grade(sampled, self.topology, self.place)

    def send_parameters(self, student: Student) -> None:
        """The student's parameters to every engine, in memory and in buckets; the engine wakes."""
        platform.release_cached_memory()
        bucket = self.config.engine.bucket_mib * 2**20
        with span("send parameters"):
            self.engine.send_parameters(
                ModelParameters(student.model, student.hf, self.topology, bucket)
            )

    def check_parameters(
        self, student: Student, rollouts: list[Rollout], scorer: Scorer
    ) -> tuple[float, float]:
        """See :class:`Acting`. Raises :class:`ParametersOutOfSync`."""
        settings = self.config.engine
        chosen = [r for r in rollouts if r.token_ids][: settings.check_samples]
        spec = scorer.head.spec.alone().at(1.0)
        ours = scorer.score(student, dict(enumerate(chosen)), list(range(len(chosen))), spec)
        theirs = self.engine.score([[*r.prompt.token_ids, *r.token_ids] for r in chosen])
        return require_same_scores(self.config, chosen, ours.logprobs, [theirs])

    def evaluate(self, sets: dict[str, PromptDataset]) -> Evaluated:
        """See :class:`Acting`."""
        settings, sampling = self.config.evaluation, evaluation_sampling(self.config)
        values: dict[str, dict[str, float]] = {}
        samples: dict[str, list[Rollout]] = {}
        for name, dataset in sets.items():
            prompts = share_of_replica(dataset, settings.limit, self.topology)
            rollouts = self.grade(self._sample(prompts, sampling))
            samples[name] = rollouts
            values[name] = summarize(rollouts, settings.samples, self.topology)
        return join_sets(values), samples

    def in_flight(self, done: int) -> dict[str, Any] | None:
        """Nothing is sampled ahead."""
        return None

    def resume(self, done: int, saved: dict[str, Any]) -> None:
        """The step is sampled again, with the parameters of now."""

    def observe(self, metrics: StepMetrics) -> None:
        """The step's times of this rank's engine and verifiers."""
        if (sampled := self._sampled) is not None:
            metrics.maximum("sampling/engine_s", sampled.seconds)
            metrics.maximum("sampling/grading_s", sampled.grading_s)
            metrics.maximum("sampling/graded_s", sampled.grading.seconds)
            self._sampled = None

    def close(self) -> None:
        """End the verifiers' processes and the engine."""
        self.verifiers.close()
        self.engine.close()


def require_same_scores(
    config: Config,
    rollouts: list[Rollout],
    ours: dict[int, Tensor],
    theirs: list[list[list[float]]],
) -> tuple[float, float]:
    """(largest, mean) difference over the response tokens, the maximum over engines and ranks.

    ``theirs``: of each engine, for each sequence, every token's after the first. Collective over
    the training ranks. Raises :class:`ParametersOutOfSync`.
    """
    found = [_differences(rollouts, ours, engine) for engine in theirs] or [(0.0, 0.0)]
    largest, mean = all_max([max(pair[n] for pair in found) for n in (0, 1)])
    limit = tolerance(config)
    if mean > limit:
        raise ParametersOutOfSync(
            f"rollout.engine.logprob_tolerance: after the weight transfer the engine's "
            f"log-probabilities differ from the trainer's by {mean:.3g} on average, more than "
            f"{limit:.3g}; the engine works with other weights (raise the "
            "limit only if the precision differs on purpose)"
        )
    return largest, mean


def _differences(
    rollouts: list[Rollout], ours: dict[int, Tensor], theirs: list[list[float]]
) -> tuple[float, float]:
    """(largest, mean) over the response tokens of the rollouts."""
    largest, total, count = 0.0, 0.0, 0
    for index, rollout in enumerate(rollouts):
        engine_side = torch.tensor(theirs[index][len(rollout.prompt.token_ids) - 1 :])
        gap = (ours[index] - engine_side).abs()
        largest = max(largest, float(gap.max()))
        total, count = total + float(gap.sum()), count + gap.numel()
    return largest, total / max(count, 1)
