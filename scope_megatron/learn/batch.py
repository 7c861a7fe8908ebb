"""The graded responses of one step, with everything the weights and the loss read of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

from torch import Tensor

from scope_megatron.objective.routing import Routes
from scope_megatron.types import Rollout

_T = TypeVar("_T")


@dataclass
class Batch:
    """All B responses of the global batch, numbered alike on every rank.

    The tensors [B] know every response: ``group`` numbers the prompts, ``lengths`` counts response
    tokens, the means are log-probabilities per token (0 where there is none). Whatever has a size
    per token is there for the responses that this replica holds alone: ``rollouts``, and
    log-probabilities float32 [response length] on the CPU; one that was not scored is absent.
    """

    rollouts: dict[int, Rollout]  # held by this replica, by number
    group: Tensor
    lengths: Tensor
    routes: Routes
    student_mean: Tensor | None = None  # of the behaviour policy
    teacher_mean: Tensor | None = None
    old_logprobs: dict[int, Tensor] = field(default_factory=dict)  # behaviour policy, for rho
    student_logprobs: dict[int, Tensor] = field(default_factory=dict)  # the same, for weights
    logprobs: dict[int, Tensor] = field(default_factory=dict)  # as the first training pass said
    teacher_logprobs: dict[int, Tensor] = field(default_factory=dict)
    reference_logprobs: dict[int, Tensor] = field(default_factory=dict)
    # what sampled kl pulls to, where that is not the teacher's
    target_logprobs: dict[int, Tensor] = field(default_factory=dict)
    teacher_hidden: dict[int, Tensor] = field(default_factory=dict)  # last stage: [length, H_t/tp]
    student_entropy: dict[int, float] = field(default_factory=dict)  # nats per token
    teacher_entropy: dict[int, float] = field(default_factory=dict)
    token_entropy: dict[int, Tensor] = field(default_factory=dict)  # as the training pass said
    teacher_token_entropy: dict[int, Tensor] = field(default_factory=dict)  # where weights read it
    divergence: dict[int, Tensor] = field(default_factory=dict)  # exact, where it is computed
    # of those to be written down, with logging.rollouts.alternatives: float32 [length, 2, k],
    # numbers of the likeliest tokens and their log-probabilities; and the teacher's of each token
    student_best: dict[int, Tensor] = field(default_factory=dict)
    teacher_best: dict[int, Tensor] = field(default_factory=dict)
    teacher_aside: dict[int, Tensor] = field(default_factory=dict)
    unscored: set[int] = field(default_factory=set)  # masked: a score of theirs is not finite
    imbalance: float = 1.0  # largest over mean arithmetic of a replica

    def __len__(self) -> int:
        """B."""
        return int(self.group.numel())

    def members(self, mask: Tensor) -> list[int]:
        """The responses held here that a mask [B] selects, ascending."""
        return [index for index in mask.nonzero().flatten().tolist() if index in self.rollouts]

    def mask_unscored(self, bad: Tensor) -> None:
        """Take responses [B] whose scores are not finite out of both paths: none is made up."""
        for index in bad.nonzero().flatten().tolist():
            self.routes.correct[index] = self.routes.incorrect[index] = False
            self.routes.masked[index] = True
            self.unscored.add(index)
            for scores in (
                *(self.old_logprobs, self.student_logprobs),
                *(self.teacher_logprobs, self.reference_logprobs),
            ):
                scores.pop(index, None)

    def parts(self, count: int) -> list[Batch]:
        """The groups dealt into ``count`` batches."""
        return [self] if count == 1 else [self._part(start, count) for start in range(count)]

    def _part(self, start: int, count: int) -> Batch:
        kept = (self.group % count == start).nonzero().flatten()
        place = {index: new for new, index in enumerate(kept.tolist())}

        def renumbered(values: dict[int, _T]) -> dict[int, _T]:
            return {place[i]: value for i, value in values.items() if i in place}

        routes = self.routes
        return Batch(
            rollouts=renumbered(self.rollouts),
            group=self.group[kept] // count,
            lengths=self.lengths[kept],
            routes=Routes(routes.correct[kept], routes.incorrect[kept], routes.masked[kept]),
            student_mean=None if self.student_mean is None else self.student_mean[kept],
            teacher_mean=None if self.teacher_mean is None else self.teacher_mean[kept],
            old_logprobs=renumbered(self.old_logprobs),
            student_logprobs=renumbered(self.student_logprobs),
            logprobs=renumbered(self.logprobs),
            teacher_logprobs=renumbered(self.teacher_logprobs),
            reference_logprobs=renumbered(self.reference_logprobs),
            target_logprobs=renumbered(self.target_logprobs),
            teacher_hidden=renumbered(self.teacher_hidden),
            student_entropy=renumbered(self.student_entropy),
            teacher_entropy=renumbered(self.teacher_entropy),
            teacher_token_entropy=renumbered(self.teacher_token_entropy),
            student_best=renumbered(self.student_best),
            teacher_best=renumbered(self.teacher_best),
            teacher_aside=renumbered(self.teacher_aside),
            unscored={place[i] for i in self.unscored if i in place},
        )


def reward(rollout: Rollout) -> float | None:
    """R_i of the paper: 1 or 0, None when nobody judged the response."""
    if rollout.verdict is None or not rollout.verdict.judged:
        return None
    return float(rollout.verdict == "correct")
