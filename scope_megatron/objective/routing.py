"""Routing of responses to paths of the loss by their verdicts (SCOPE, arXiv 2604.10688, 3.1).

Correct responses take the likelihood path, incorrect ones the distillation path. Responses that
nobody could judge take neither.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Routes:
    """Three disjoint masks over the responses of a batch; every response is in exactly one."""

    correct: Tensor  # [B] bool
    incorrect: Tensor  # [B] bool
    masked: Tensor  # [B] bool, in neither path

    @property
    def routed(self) -> Tensor:
        """[B] bool: the responses that enter the loss."""
        return self.correct | self.incorrect


def route(
    rewards: Sequence[float | None],
    finished: Sequence[bool],
    lengths: Sequence[int],
    truncated: Literal["incorrect", "mask"] = "incorrect",
) -> Routes:
    """Send each response to its path. The first rule that applies decides:

    1. reward None (nobody could judge it) or no tokens: masked;
    2. not finished (cut off at the length limit, whatever its reward): ``truncated`` decides;
    3. reward >= 1: correct, else incorrect.

    Args:
        rewards: B rewards, None where there is no verdict.
        finished: B flags, true where the response ended with its end token.
        lengths: B response lengths in tokens.
        truncated: ``incorrect`` or ``mask``.

    Raises:
        ValueError: lists of different lengths, an unknown ``truncated``, a NaN reward.
    """
    if truncated not in ("incorrect", "mask"):
        raise ValueError(f"objective.truncated must be incorrect or mask, got {truncated!r}")
    if not len(rewards) == len(finished) == len(lengths):
        raise ValueError(
            "rewards, finished and lengths must have one entry per response, got "
            f"{len(rewards)}, {len(finished)} and {len(lengths)}"
        )
    for index, reward in enumerate(rewards):
        if reward is not None and math.isnan(reward):
            raise ValueError(f"the reward of response {index} is NaN: use None for no verdict")
    judged = torch.tensor([reward is not None for reward in rewards], dtype=torch.bool)
    right = torch.tensor([reward is not None and reward >= 1.0 for reward in rewards]).bool()
    whole = torch.tensor(list(finished), dtype=torch.bool)
    masked = ~judged | (torch.tensor(list(lengths), dtype=torch.int64) < 1)
    if truncated == "mask":
        masked = masked | ~whole
    correct = right & whole & ~masked
    return Routes(correct=correct, incorrect=~correct & ~masked, masked=masked)
