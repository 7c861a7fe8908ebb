"""The section of the configuration that names the algorithm and bounds its ratios."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from scope_megatron.config.sections.section import Section


class AlgorithmConfig(Section):
    """What the tokens are weighted by."""

    name: Literal["scope", "opd", "grpo", "kd"] = Field(
        "scope",
        description="scope: correct responses by MLE, incorrect ones by the teacher's KL, both "
        "weighted by perplexity. opd: the teacher's KL on all responses. grpo: group-relative "
        "advantages, no teacher. kd: supervised training on given responses",
    )
    clip_eps: float = Field(
        0.2,
        gt=0,
        lt=1,
        description="PPO clip of the ratio to the behaviour policy: grpo always, the others "
        "only when train.updates_per_batch > 1",
    )
    clip_high: float | None = Field(
        None,
        gt=0,
        description="upper side of that clip, 1 + clip_high (DAPO's clip-higher: 0.28); "
        "null: clip_eps",
    )
    clip_dual: float | None = Field(
        None,
        gt=1,
        description="dual clip c: where the advantage A is negative, the clipped gain is not below "
        "c A; null: off",
    )
    kl_coef: float = Field(
        1e-4, ge=0, description="grpo: coefficient of the KL to the reference (initial student)"
    )
