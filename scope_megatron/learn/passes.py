"""Forward-only passes that a step needs, and nothing beyond them.

With one update per batch the weights that sampled are the weights that train: rho is 1, and the
training pass itself gives their log-probabilities. Before it only two things can be needed: the
student's mean log-probability of correct responses (eq. 4), and the teacher's of incorrect ones
(eq. 5, and eq. 3 for each token). The engine has said the former already, where it samples from
the whole distribution.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from scope_megatron.config import Config

_BY_TOKEN = ("rlsd", "sdar", "srpo")  # the teacher's word on single tokens is read by weights
# none: no log-probabilities of the student before its update
# engine: as the engine said; weights: a pass over what eq. 4 weighs; all: a pass over all
StudentPass = Literal["none", "engine", "weights", "all"]


@dataclass(frozen=True)
class Passes:
    """Passes over a batch before its first update."""

    student: StudentPass
    ratio: bool  # the loss takes rho against the student's scores; else rho is 1
    teacher_logprobs: bool  # of what the algorithm gives the frozen model
    teacher_hidden: bool  # kept for an exact divergence
    teacher_entropy: bool = False  # of each token, whether or not it is logged

    @classmethod
    def of(cls, config: Config) -> Passes:
        """As objective.old_logprobs, the algorithm and its weights ask."""
        objective, name = config.objective, config.algorithm.name
        exact = config.needs_teacher and objective.kl != "sampled"
        weighs_teacher = name == "scope" and objective.teacher_weight != "uniform"
        weighs_teacher = weighs_teacher or name in _BY_TOKEN or objective.iw_gamma > 0
        frozen = config.needs_teacher or (name == "grpo" and config.algorithm.kl_coef > 0)
        student, ratio = cls._student(config)
        return cls(
            student=student,
            ratio=ratio,
            # an exact divergence tells them on the way, but for topk and for later updates
            teacher_logprobs=frozen
            and (
                not exact
                or weighs_teacher
                or objective.kl == "topk"
                or config.train.updates_per_batch > 1
            ),
            teacher_hidden=exact,
            teacher_entropy=name == "srpo",
        )

    @staticmethod
    def _student(config: Config) -> tuple[StudentPass, bool]:
        objective = config.objective
        if not config.on_policy:
            return "none", False
        if objective.old_logprobs == "rollout":
            return "engine", True
        if objective.old_logprobs == "recompute" or config.train.updates_per_batch > 1:
            return "all", True
        if weighs_tokens(config):
            return ("engine" if samples_everything(config) else "all"), False
        if config.algorithm.name != "scope" or objective.student_weight == "uniform":
            return "none", False
        return ("engine" if samples_everything(config) else "weights"), False


def weighs_tokens(config: Config) -> bool:
    """Whether factors of single tokens read the student's log-probabilities before the update."""
    objective, name = config.objective, config.algorithm.name
    unlikely = objective.incorrect == "constant" and objective.constant_below is not None
    return unlikely or objective.iw_gamma > 0 or name in ("rlsd", "sdar")


def samples_everything(config: Config) -> bool:
    """Whether engine and trainer speak of one distribution: top-p and top-k renormalise it."""
    rollout = config.rollout
    return rollout is not None and rollout.top_p >= 1 and rollout.top_k <= 0
