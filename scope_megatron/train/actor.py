"""The acting half of a step: sample responses with the engine, grade them, take new weights."""

from __future__ import annotations

from scope_megatron.config import Config
from scope_megatron.engine.vllm import Sampling, request_seed
from scope_megatron.learn.models import Student
from scope_megatron.learn.scorer import Scorer
from scope_megatron.parallel.topology import Topology
from scope_megatron.rollout.prompts import PromptDataset
from scope_megatron.rollout.sample import grade, sample
from scope_megatron.rollout.tokenizer import Tokenizer
from scope_megatron.rollout.verify import Verifiers
from scope_megatron.train import setup
from scope_megatron.train.evaluate import share_of_replica, summarize
from scope_megatron.train.sync import check_sync, sync_weights
from scope_megatron.types import Prompt, Rollout


class Actor:
    """This rank's engine and verifiers. Every method is collective over model-parallel ranks."""

    def __init__(
        self, config: Config, tokenizer: Tokenizer, topology: Topology, verifiers: Verifiers
    ) -> None:
        self.config, self.tokenizer, self.topology = config, tokenizer, topology
        self.engine, self.place = setup.build_engine(config, tokenizer, topology)
        self.verifiers = verifiers

    def sample(self, prompts: list[Prompt], step: int) -> list[Rollout]:
        """A group of responses for each prompt, as ``rollout`` says; then the engine sleeps."""
        settings = self.config.rollout
        assert settings is not None
        sampling = Sampling(
            samples=settings.group_size,
            max_tokens=settings.max_response_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
            seed=request_seed(self.config.seed, step),
        )
        rollouts = sample(self.engine, prompts, sampling, self.topology, self.place)
        self.engine.sleep()
        return rollouts

    def grade(self, rollouts: list[Rollout]) -> None:
        """Fill in every rollout's text and verdict."""
        grade(rollouts, self.verifiers, self.tokenizer, self.topology)

    def take_weights(self, student: Student) -> None:
        """The student's weights to the engine, in memory; the engine wakes."""
        sync_weights(student, self.engine, self.config, self.topology)

    def check_weights(
        self, student: Student, rollouts: list[Rollout], scorer: Scorer
    ) -> tuple[float, float]:
        """(largest, mean) difference of log-probabilities; stops the run when it is too large."""
        return check_sync(student, self.engine, rollouts, self.config, scorer)

    def evaluate(self, dataset: PromptDataset) -> dict[str, float]:
        """``eval/avg@k`` and ``eval/pass@k`` in [0, 1] over the whole evaluation set.

        The same problems and seeds at every call. A response that nobody could judge, or that was
        cut off, counts as wrong. Collective over all ranks.
        """
        settings, limit = self.config.evaluation, self.config.evaluation_response_tokens
        assert limit is not None
        sampling = Sampling(
            samples=settings.samples,
            max_tokens=limit,
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
            seed=self.config.seed,
        )
        prompts = share_of_replica(dataset, settings.limit, self.topology)
        rollouts = sample(self.engine, prompts, sampling, self.topology, self.place)
        self.grade(rollouts)
        return summarize(rollouts, settings.samples, self.topology)

    def close(self) -> None:
        """End the verifiers' processes and the engine."""
        self.verifiers.close()
        self.engine.close()
