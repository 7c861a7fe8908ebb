"""A batch in plain numbers: four prompts of four responses, with both models' scores."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scope_megatron.config import Config
    from scope_megatron.learn.batch import Batch

GROUP, LIMIT = 4, 16
# 1 correct, 0 incorrect, None not judged; the second group is all correct, the third all incorrect
VERDICTS: list[list[int | None]] = [[1, 0, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0], [1, 0, None, 0]]


@dataclass(frozen=True)
class Response:
    """Scores are log-probabilities per token, entropies the teacher's."""

    number: int
    judged: bool
    right: bool
    student: list[float]
    teacher: list[float]
    entropy: list[float]
    reference: list[float]

    @property
    def group(self) -> int:
        return self.number // GROUP

    @property
    def length(self) -> int:
        return len(self.student)


def _response(number: int, rng: random.Random) -> Response:
    verdict, length = VERDICTS[number // GROUP][number % GROUP], rng.randint(1, LIMIT)
    rows = [[scale * rng.random() for _ in range(length)] for scale in (-1.5, -2.0, 2.0, -1.7)]
    return Response(number, verdict is not None, verdict == 1, *rows)


_RNG = random.Random(11)
RESPONSES = [_response(number, _RNG) for number in range(4 * GROUP)]


def made_config(**sections: dict[str, Any]) -> Config:
    """Settings of a run that would sample such a batch, section by section."""
    from scope_megatron.config import Config

    raw: dict[str, Any] = {
        "output_dir": "out",
        "model": {"student": "s", "teacher": "t"},
        "data": {"train": "d.jsonl", "max_prompt_tokens": 8},
        "rollout": {"prompts_per_step": 4, "group_size": GROUP, "max_response_tokens": LIMIT},
        "train": {"steps": 1, "microbatch_tokens": 64},
    }
    for name, values in sections.items():
        raw[name] = raw.get(name, {}) | values
    return Config.model_validate(raw)


def made_batch() -> Batch:
    """The responses as a learner has them when it weighs."""
    import torch

    from scope_megatron.types import Prompt, Rollout, Verdict
    from tests.support.steps import batch_of

    def rollout(response: Response) -> Rollout:
        verdict = Verdict.CORRECT if response.right else Verdict.INCORRECT
        return Rollout(
            Prompt(response.group, (1,), "1"),
            response.number % GROUP,
            [5] * response.length,
            [],
            True,
            verdict=verdict if response.judged else Verdict.CRASH,
        )

    batch = batch_of([rollout(response) for response in RESPONSES])
    judged = [r for r in RESPONSES if r.judged]
    for name, into in (
        ("student", "student_logprobs"),
        ("teacher", "teacher_logprobs"),
        ("entropy", "teacher_token_entropy"),
        ("reference", "reference_logprobs"),
    ):
        setattr(batch, into, {r.number: torch.tensor(getattr(r, name)) for r in judged})
    batch.student_mean, batch.teacher_mean = torch.zeros(16), torch.zeros(16)
    for r in judged:
        batch.student_mean[r.number] = sum(r.student) / r.length
        batch.teacher_mean[r.number] = sum(r.teacher) / r.length
    return batch
