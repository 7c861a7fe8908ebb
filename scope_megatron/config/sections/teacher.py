"""The section of the configuration on the frozen model: the teacher, or grpo's reference."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from scope_megatron.config.sections.section import Section


class TeacherParallel(Section):
    """A layout of the frozen model's own, on the ranks that train: tensor x pipeline x context must
    divide their number, and each such group of ranks scores its share of the responses."""

    tensor: int = Field(1, ge=1, description="tensor-parallel size")
    pipeline: int = Field(1, ge=1, description="pipeline-parallel size")
    context: int = Field(1, ge=1, description="context-parallel size")
    expert: int = Field(1, ge=1, description="as parallel.expert, of a mixture")
    sequence: bool = Field(False, description="sequence parallelism (needs tensor > 1)")

    @property
    def ranks(self) -> int:
        """Ranks that hold one copy of the model."""
        return self.tensor * self.pipeline * self.context


class TeacherConfig(Section):
    """The frozen model on the ranks of the student (grpo: its reference)."""

    source: Literal["model", "student"] = Field(
        "model",
        description="model: model.teacher; student: the student's own parameters of the moment, "
        "on the privileged prompt (self-distillation: no second model is loaded)",
    )
    privileged: str | None = Field(
        None,
        min_length=1,
        description="text that ends the prompt for the teacher alone, {answer} standing for the "
        "row's reference answer; null: teacher and student read the same",
    )
    offload: Literal["none", "cpu"] = Field(
        "none",
        description="cpu: its parameters are on the device only while they are used, a layer at a "
        "time, the next one on its way. On CUDA they wait in pinned host memory; on a CPU each "
        "layer is read from the model's files at every use",
    )
    dtype: Literal["float32", "bfloat16", "auto"] = Field(
        "auto", description="its parameters' type; auto: model.dtype"
    )
    parallel: TeacherParallel | None = Field(
        None,
        description="a layout of its own on the ranks that train; null: the student's "
        "(docs/teachers.md)",
    )
