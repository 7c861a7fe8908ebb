"""The section of the configuration that names the algorithm and bounds its ratios."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from scope_megatron.config.sections.section import Section


class AlgorithmConfig(Section):
    """What the tokens are weighted by."""

    name: Literal["scope", "opd", "grpo", "kd", "kdrl", "rlsd", "sdar", "srpo"] = Field(
        "scope",
        description="scope: correct responses by MLE, incorrect ones by the teacher's KL, both "
        "weighted by perplexity. opd: the teacher's KL on all responses. grpo: group-relative "
        "advantages, no teacher. kd: supervised training on given responses. kdrl: grpo plus "
        "teacher_coef times the teacher's KL. rlsd: grpo, each token's advantage scaled by the "
        "teacher's opinion of it. sdar: grpo plus teacher_coef times a gated pull to the teacher. "
        "srpo: grpo on correct responses, the teacher's KL on incorrect ones where the teacher is "
        "sure (docs/algorithms.md)",
    )
    clip_eps: float = Field(
        0.2,
        gt=0,
        lt=1,
        description="PPO clip of the ratio to the behaviour policy",
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
        1e-4, ge=0, description="coefficient of the KL to the reference (initial student)"
    )
    teacher_coef: float = Field(1.0, gt=0, description="coefficient of the teacher's term")
    rlsd_lambda: float = Field(
        0.5, ge=0, le=1, description="share of the advantage that the teacher scales"
    )
    rlsd_eps: float = Field(
        0.2, gt=0, lt=1, description="the scale lies between 1 - rlsd_eps and 1 + rlsd_eps"
    )
    srpo_beta: float = Field(
        1.0, ge=0, description="a token's weight is exp(-srpo_beta x the teacher's entropy)"
    )
    group_filter: Literal["none", "mixed"] = Field(
        "none",
        description="mixed: groups whose responses are all correct or all incorrect are left out, "
        "of the denominators, too (DAPO, without sampling others in their place)",
    )
    overlong_buffer: int = Field(
        0,
        ge=0,
        description="in groups that are neither all correct nor all incorrect the reward falls by "
        "overlong_penalty over the last so many tokens before "
        "rollout.max_response_tokens (DAPO); 0: off",
    )
    overlong_penalty: float = Field(1.0, gt=0, description="at the full length")
    pass_rate_alpha: float = Field(
        0.0,
        ge=0,
        description="a prompt weighs p^alpha (1-p)^beta, p its share of correct responses, over "
        "the mean of the batch (PACED); alpha and beta 0: all alike",
    )
    pass_rate_beta: float = Field(0.0, ge=0, description="see pass_rate_alpha")
