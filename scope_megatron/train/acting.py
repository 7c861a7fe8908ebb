"""What a step asks of its acting half: engines on these ranks (actor.py) or others (remote.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from scope_megatron.data.dataset import PromptDataset
from scope_megatron.learn.models import Student
from scope_megatron.learn.scorer import Scorer
from scope_megatron.logging.metrics import StepMetrics
from scope_megatron.types import Prompt, Rollout

Meanwhile = Callable[[list[list[Rollout]]], None]
Evaluated = tuple[dict[str, float], dict[str, list[Rollout]]]


class Acting(Protocol):
    """Responses sampled and graded, parameters sent. Collective over a replica's ranks."""

    waits_in: frozenset[str]  # phases in which these ranks wait for ranks that only sample
    signum: int  # a signal that one of those got, 0 for none

    def sample(self, prompts: list[Prompt], step: int, meanwhile: Meanwhile | None = None) -> Any:
        """A group of responses for each prompt, as ``rollout`` says; for :meth:`grade`.

        ``meanwhile`` may be given complete, graded groups while others are still sampled, on every
        rank of the replica.
        """
        ...

    def grade(self, sampled: Any) -> list[Rollout]:
        """The rollouts, each with its text and verdict, on every rank of the replica."""
        ...

    def rest(self) -> None:
        """Nobody asks the engine before it gets parameters again."""
        ...

    def send_parameters(self, student: Student) -> None:
        """The student's parameters to every engine."""
        ...

    def check_parameters(
        self, student: Student, rollouts: list[Rollout], scorer: Scorer
    ) -> tuple[float, float]:
        """Largest and mean absolute difference of the engines' scores to the trainer's.

        Of the response tokens of ``rollout.engine.check_samples`` sequences at temperature 1.
        Collective over all ranks, maxima over all engines. Raises ValueError when the mean is above
        ``rollout.engine.logprob_tolerance``.
        """
        ...

    def evaluate(self, sets: dict[str, PromptDataset]) -> Evaluated:
        """``eval/avg@k`` and ``eval/pass@k`` in [0, 1]: means over the evaluation sets, and each
        set's own as ``eval/NAME/avg@k`` where it has a name; and this replica's graded samples.

        The same problems and seeds at every call. A response that nobody could judge, or that was
        cut off, counts as wrong. Collective over all ranks.
        """
        ...

    def in_flight(self, done: int) -> dict[str, Any] | None:
        """What of the step after ``done`` has been sampled already, for its checkpoint
        (collective over all ranks)."""
        ...

    def resume(self, done: int, saved: dict[str, Any]) -> None:
        """Go on with what :meth:`in_flight` gave."""
        ...

    def observe(self, metrics: StepMetrics) -> None:
        """Record what the other ranks told of the step."""
        ...

    def close(self) -> None:
        """End what was started."""
        ...
