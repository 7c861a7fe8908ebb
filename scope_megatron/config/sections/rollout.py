"""The section of the configuration on sampling: responses, engines, and the ranks they are on."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from scope_megatron.config.sections.section import Section

TopK = Annotated[int, Field(ge=-1)]
_ALONE = 0.85  # of a GPU's memory for an engine that shares it with no trainer


class EngineConfig(Section):
    """The vLLM engine that samples responses."""

    tensor: int = Field(
        1,
        ge=1,
        description="tensor-parallel size of one engine; a divisor of parallel.tensor, or of "
        "rollout.ranks where placement is separate",
    )
    max_model_len: int | None = Field(
        None,
        ge=1,
        description="longest prompt + response in tokens; null: the longest that data, rollout "
        "and evaluation allow",
    )
    kv_cache_gib: float = Field(1.0, gt=0, description="CPU: key-value cache per engine, GiB")
    gpu_memory_utilization: float = Field(
        0.45,
        gt=0,
        le=1,
        description="CUDA: share of the device memory the engine may use; 0.85 when left out and "
        "placement is separate",
    )
    max_num_seqs: int = Field(256, ge=1, description="sequences decoded at once")
    bucket_mib: int = Field(
        64, ge=1, description="weights travel to the engine in buckets of this size, MiB"
    )
    logprob_tolerance: float | None = Field(
        None,
        gt=0,
        description="largest mean absolute difference between the engine's and the trainer's "
        "log-probabilities; above it the run stops: the weights are out of step. null: 0.02 for "
        "float32 and 0.1 for bfloat16 parameters, where honest rounding alone makes 0.01 to 0.04 "
        "and wrong weights make 1 or more",
    )
    check_samples: int = Field(
        4, ge=0, description="responses re-scored after a weight transfer; 0: no check"
    )
    check_every: int = Field(
        5,
        ge=1,
        description="transfers are checked after each of a process's first five steps, then after "
        "every so many; the proof bit for bit at the first transfer is always made",
    )
    sleep: bool = Field(
        True, description="CUDA: the engine frees its weights and cache while the trainer works"
    )


class RolloutConfig(Section):
    """How responses are sampled. Required unless algorithm.name is kd, which reads of it
    temperature, max_response_tokens and what is of the engine."""

    prompts_per_step: int = Field(
        ge=1, description="prompts per training step, all replicas together"
    )
    group_size: int = Field(
        8, ge=1, description="responses per prompt (opd: 1 when left out; grpo: at least 2)"
    )
    max_response_tokens: int = Field(
        ge=1, description="a response is cut off at this length, its end token included"
    )
    temperature: float = Field(0.6, gt=0, description="sampling temperature of training rollouts")
    top_p: float = Field(1.0, gt=0, le=1, description="nucleus sampling; 1.0: off")
    top_k: TopK = Field(-1, description="sample among the k likeliest tokens; -1 or 0: all")
    placement: Literal["colocated", "separate"] = Field(
        "colocated",
        description="colocated: every rank trains and holds an engine, the two take turns. "
        "separate: rollout.ranks further ranks hold engines only, the others only train "
        "(docs/placement.md)",
    )
    ranks: int | None = Field(
        None,
        ge=1,
        description="ranks that only sample, besides those of parallel; a multiple of "
        "engine.tensor",
    )
    lag: int = Field(
        0,
        ge=0,
        le=1,
        description="separate: 1: a step's responses are sampled while the step before it trains, "
        "so with parameters that are one update older; the loss weighs every token by its ratio to "
        "the policy that sampled it, cut off at objective.tis_clip",
    )
    carry_over: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="separate, lag 0: a step begins its update while at most this share of its "
        "groups is still being sampled; those go into the next step, sampled to their end by the "
        "parameters that began them, and the loss weighs their tokens as lag says; 0: a step waits "
        "for all of its groups",
    )
    engine: EngineConfig = EngineConfig()

    @model_validator(mode="before")
    @classmethod
    def _engine_alone(cls, values: Any) -> Any:
        """An engine that shares its GPU with no trainer takes most of it unless told otherwise."""
        if not isinstance(values, dict) or values.get("placement") != "separate":
            return values
        engine = values.get("engine", {})
        if not isinstance(engine, dict):
            return values
        return values | {"engine": {"gpu_memory_utilization": _ALONE} | engine}
