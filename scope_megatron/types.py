"""The data that flows through one training step.

Shape legend, used across the package:
    B  sequences (responses) in a batch      N  responses per prompt (group size)
    T  tokens of one packed microbatch       S  sequences in one packed microbatch
    R  rows of a pack that predict response tokens
    V  vocabulary                            tp tensor-parallel size
    L  length of one sequence
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


# A row's reference answer: one text, or several of which each alone is correct.
Answer = str | tuple[str, ...]


class Verdict(StrEnum):
    """Result of verifying one response; only the first two train."""

    CORRECT = "correct"
    INCORRECT = "incorrect"
    TIMEOUT = "timeout"  # the grader was stopped: nobody judged the response
    CRASH = "crash"  # the grader died: nobody judged the response
    REFUSED = "refused"  # the grader would not judge: no isolation, or tests it cannot read

    @property
    def judged(self) -> bool:
        return self in (Verdict.CORRECT, Verdict.INCORRECT)


def accepted(answer: Answer) -> tuple[str, ...]:
    """The answers that are correct, one or more."""
    return (answer,) if isinstance(answer, str) else answer


@dataclass(frozen=True)
class Prompt:
    """One usable row of a dataset, tokenised. ``index`` is its position in the dataset."""

    index: int
    token_ids: tuple[int, ...]
    answer: Answer
    text: str = ""
    source: str = ""  # the row's data_source: picks the verifier when verifier.name is auto
    verifier: str = ""  # the row's own choice of a verifier; comes before its source
    response_ids: tuple[int, ...] = ()  # supervised response, end token included (kd only)
    privileged_ids: tuple[int, ...] = ()  # what the teacher reads instead; none: the same
    teacher: str = ""  # the row's own choice among model.teachers; comes before its source

    @property
    def tag(self) -> str:
        """Picks the teacher where there are several."""
        return self.teacher or self.source


@dataclass
class Rollout:
    """One response sampled for a prompt, with what was learnt about it since.

    ``token_ids`` are the response tokens, the end token included when ``finished``.
    ``engine_logprobs`` are the engine's log-probabilities of those tokens at the rollout
    temperature (one float per token).
    """

    prompt: Prompt
    sample: int  # 0 .. N-1 inside its group
    token_ids: list[int]
    engine_logprobs: list[float]
    finished: bool
    text: str = ""
    verdict: Verdict | None = None
    version: int | None = None  # steps done by the parameters that sampled all of it; None: those
    # of its own step
    taught: Any = None  # a learn.scorer.Scored of it alone, where it was scored while others
    # were still sampled

    @property
    def length(self) -> int:
        """Tokens of prompt and response together."""
        return len(self.prompt.token_ids) + len(self.token_ids)


@dataclass
class PackedBatch:
    """Sequences laid end to end, without padding between them (THD layout).

    Row t predicts ``targets[t]`` = the next token of the same sequence. ``rows`` are the R rows
    whose target is a response token; only they enter a loss or a score. They lie in the members'
    order, ``counts`` of them for each. The tail is padded to a multiple (one extra dummy sequence)
    when the layout asks for it. The lists stay on the host: nothing has to be copied back.
    """

    tokens: torch.Tensor  # [T] int64
    targets: torch.Tensor  # [T] int64, 0 where there is no next token
    position_ids: torch.Tensor  # [T] int64, from 0 in each sequence
    rows: torch.Tensor  # [R] int64, ascending
    cu_seqlens: torch.Tensor  # [S+1] int32
    bounds: list[int]  # cu_seqlens, on the host
    members: list[int]  # indices of the sequences in it, in order
    counts: list[int]  # response tokens of each member

    @property
    def num_tokens(self) -> int:
        """T."""
        return int(self.tokens.numel())

    @property
    def real_tokens(self) -> int:
        """Tokens of its members: the others are padding."""
        return self.bounds[len(self.members)]

    @property
    def num_rows(self) -> int:
        """R."""
        return int(self.rows.numel())

    @property
    def max_seqlen(self) -> int:
        return max(end - start for start, end in pairwise(self.bounds))

    def to(self, device: torch.device) -> PackedBatch:
        """The same pack with its tensors on ``device``.

        The caller does not wait for a copy to a GPU. A copy to the host is waited for: without
        that torch returns before the numbers are there, and whoever reads them reads old memory.
        """
        moved = {
            name: value.to(device, non_blocking=device.type == "cuda")
            for name, value in vars(self).items()
            if hasattr(value, "device")
        }
        return replace(self, **moved)
