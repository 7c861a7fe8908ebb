"""The section of the configuration that shapes the loss."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from scope_megatron.config.sections.section import Section

Weighting = Literal["perplexity", "uniform", "reversed"]
AS_ROLLOUT = "as_rollout"


def _to_temperature(value: Any) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if value != AS_ROLLOUT and not (number and 0 < value < math.inf):
        raise ValueError(
            f"is {value!r} but must be a number above 0, or {AS_ROLLOUT}; the default is 1.0"
        )
    return value


class ObjectiveConfig(Section):
    """The loss."""

    preset: Literal["paper", "reference_code"] = Field(
        "paper",
        description="paper: the published weights and losses (eq. 1 to 5; how the two paths are "
        "weighed against each other: objective.normalization); reference_code: what the published "
        "code computes instead, a value for each of these where none is given: objective."
        "{student_weight, normalization, likelihood, teacher_gap, old_logprobs}, algorithm."
        "{clip_dual, kl_coef}, optimizer.{beta2, states}, verifier.name, data.overlong "
        "(docs/reference_code.md)",
    )
    tau: float = Field(1.0, gt=0, description="temperature of the group weights; large: uniform")
    student_weight: Weighting = Field(
        "perplexity",
        description="weights of a group's correct responses. perplexity: the student's higher "
        "perplexity weighs more; reversed: less; uniform: all alike",
    )
    teacher_weight: Weighting = Field(
        "perplexity",
        description="weights of a group's incorrect responses. perplexity: the teacher's lower "
        "perplexity weighs more; reversed: less; uniform: all alike",
    )
    weight_group: Literal["prompt", "batch"] = Field(
        "prompt",
        description="which responses the weights compare. prompt: those of one prompt (eq. 4, 5); "
        "batch: all of the update's batch, so that whole prompts weigh less where the teacher is "
        "unsure",
    )
    likelihood: Literal["ratio", "log"] = Field(
        "ratio",
        description="the correct path's loss per token. ratio: minus the ratio to the behaviour "
        "policy (eq. 2), clipped with several updates per batch; log: minus the log-probability. "
        "One update per batch: the same gradient",
    )
    incorrect: Literal["teacher", "constant", "none"] = Field(
        "teacher",
        description="the incorrect path's signal. teacher: its KL; constant: no teacher, every "
        "token of an incorrect response has the advantage -constant_advantage; none: the "
        "likelihood of correct responses alone, no teacher",
    )
    constant_advantage: float = Field(1.0, gt=0, description="how much a token is pushed down")
    constant_below: float | None = Field(
        None,
        gt=0,
        le=1,
        description="only tokens whose probability under the student is below this are pushed "
        "down; null: all",
    )
    teacher_gap: Literal["current", "old"] = Field(
        "current",
        description="kl=sampled: the student's side of the log-ratio. current: the weights "
        "that are trained; old: those that sampled, also at later updates of a batch",
    )
    kl: Literal["sampled", "reverse_kl", "forward_kl", "jsd", "topk", "entropy_kl"] = Field(
        "sampled",
        description="distance to the teacher, per token: sampled (log-ratio of the sampled "
        "token), exact over the vocabulary (reverse_kl, forward_kl, jsd), reverse KL on a model's "
        "best tokens (topk), or reverse KL and, where the teacher's entropy is above "
        "entropy_threshold, forward KL as well (entropy_kl)",
    )
    jsd_beta: float = Field(0.5, gt=0, lt=1, description="weight of the teacher's side")
    topk: int = Field(64, ge=1, description="number of a model's best tokens")
    topk_of: Literal["teacher", "student", "union", "intersection"] = Field(
        "teacher", description="whose best tokens, or those of either or of both"
    )
    topk_tail: bool = Field(
        False,
        description="false: both models renormalised on these tokens; true: all other tokens are "
        "one more, of the mass that is left",
    )
    entropy_threshold: float = Field(
        0.8, ge=0, description="entropy of the teacher above which entropy_kl has both, nats"
    )
    extrapolation: float = Field(
        1.0,
        gt=0,
        description="ExOPD, kl=sampled: l in log pi_ref + l (log pi_T - log pi_ref), which the "
        "student is pulled to, pi_ref the initial student; 1: the teacher itself, and no "
        "reference is loaded",
    )
    iw_gamma: float = Field(
        0.0,
        ge=0,
        description="IW-OPD: tokens of the teacher's term weigh 1 + gamma at a response's start, "
        "less by the share of the log-ratio's size that came before, 1 at its end; 0: off",
    )
    prefix_tokens: int | None = Field(
        None,
        ge=1,
        description="the teacher's term takes only the first so many tokens of a response; "
        "null: all",
    )
    normalization: Literal["token_mean", "prompt_sum", "sequence_mean", "microbatch_mean"] = Field(
        "token_mean",
        description="token_mean: per response token of the global batch, each path of a prompt by "
        "its share of the responses (1 of 8 right: correct to incorrect 0.143); prompt_sum: eq. 6, "
        "token sums, mean over prompts, both paths of a prompt alike (1.0 there); sequence_mean: "
        "token mean inside each response first, paths as in token_mean; "
        "microbatch_mean: as the published code: token means inside each microbatch, of the "
        "likelihood over correct responses alone, microbatches weighted by their responses (the "
        "loss then depends on train.microbatch_tokens and the layout)",
    )
    truncated: Literal["incorrect", "mask"] = Field(
        "incorrect", description="what a response cut off at the length limit counts as"
    )
    teacher_temperature: Annotated[
        float | Literal["as_rollout"], BeforeValidator(_to_temperature)
    ] = Field(
        1.0,
        description="the teacher's logits are divided by it; as_rollout: by rollout.temperature, "
        "as the student's are. Where the two differ, student and teacher are compared at two "
        "temperatures, as in the published code (docs/reference_code.md), and a warning says so",
    )
    old_logprobs: Literal["auto", "recompute", "rollout"] = Field(
        "auto",
        description="behaviour policy's log-probabilities. auto: with one update per batch the "
        "ratio is 1 and needs none, and the weights take the engine's where it samples from the "
        "whole distribution (top_p 1, top_k off), else those of a forward pass over the correct "
        "responses; with more updates as recompute. recompute: a forward pass of the trainer over "
        "all responses; rollout: the engine's own",
    )
    tis_clip: float | None = Field(
        None,
        gt=0,
        description="truncated importance weight min(trainer/engine, tis_clip) per token, on every "
        "term but exact divergences, which do not depend on the token that was sampled; "
        "null: off. 2.0 where rollout.lag or rollout.carry_over is set and nothing is given",
    )
    moe_aux_loss_coeff: float = Field(
        0.0,
        ge=0,
        description="a mixture as student: coefficient of the load-balancing loss of its experts "
        "(megatron-core's aux_loss), summed over layers, mean over tokens; 0: none. Beside the "
        "losses of the metrics, which do not hold it",
    )
    head: Literal["auto", "fused", "logits"] = Field(
        "auto",
        description="how log-probabilities and divergences are computed, with the same result. "
        "logits: all logits of a microbatch at once; fused: a block of tokens at a time, for "
        "large vocabularies; auto: fused where a microbatch has more than 2^26 logits per rank",
    )
    kernel: Literal["auto", "torch", "triton"] = Field(
        "auto",
        description="who computes the head's passes over the logits. triton: one kernel for each "
        "pass, on CUDA only; torch: torch's operations, everywhere; auto: triton on CUDA where it "
        "imports. kl=topk and float64 are torch's always",
    )
