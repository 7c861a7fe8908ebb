"""The section of the configuration for what a run writes down of itself."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from scope_megatron.config.sections.section import Section


class ResponsesConfig(Section):
    """Responses written to output_dir/rollouts, one Parquet file per step (docs/rollouts.md)."""

    every: int = Field(
        5, ge=0, description="steps between those whose responses are written; 0: none, ever"
    )
    select: Literal["some", "all"] = Field(
        "some", description="some: logging.rollouts.groups groups of such a step; all: every one"
    )
    groups: int = Field(
        4,
        ge=1,
        description="groups of a step, and problems of each evaluation set",
    )
    alternatives: int = Field(
        0,
        ge=0,
        le=20,
        description="likeliest tokens written beside each one, of student and teacher: a forward "
        "pass more of both over the responses that are written; 0: none",
    )
    max_gib: float = Field(
        2.0,
        gt=0,
        description="size on disk beyond which the oldest steps' files are removed, GiB",
    )


class TraceConfig(Section):
    """What each rank did when, as a trace for Perfetto or chrome://tracing (docs/timeline.md)."""

    steps: list[int] | None = Field(
        None,
        description="[first, last] of the steps that are traced, to output_dir/trace; null: off",
    )
    every: int = Field(1, ge=1, description="of those steps, every n-th from the first on")

    def covers(self, step: int) -> bool:
        """Whether ``step`` (from 1) is traced."""
        if self.steps is None:
            return False
        first, last = self.steps
        return first <= step <= last and (step - first) % self.every == 0


class LoggingConfig(Section):
    """Where metrics and responses go; metrics.jsonl is always written."""

    tensorboard: bool = Field(True, description="write TensorBoard events to output_dir")
    wandb_project: str | None = Field(None, description="Weights & Biases project; null: off")
    progress: bool = Field(True, description="show progress in the terminal")
    memory: Literal["tenants", "all"] = Field(
        "tenants",
        description="tensors' memory by phase of the step (docs/memory.md). tenants: of student, "
        "gradients, optimizer, teacher and engine, on CUDA of activations too; all: on a CPU those "
        "as well, by watching every operator, for a step of several times the length",
    )
    entropy: bool = Field(
        True,
        description="entropy per token of student and teacher by path; with an exact divergence "
        "the student's on incorrect responses only with objective.old_logprobs=recompute",
    )
    rollouts: ResponsesConfig = ResponsesConfig()
    trace: TraceConfig = TraceConfig()
