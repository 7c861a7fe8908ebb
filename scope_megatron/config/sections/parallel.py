"""The section of the configuration on how the models are cut over ranks."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from scope_megatron.config.sections.section import Section


class ParallelConfig(Section):
    """How the models are cut; tensor x pipeline x context x data is the number of ranks.

    ``auto`` sizes become numbers when the file is loaded: together with the others they fill the
    GPUs (two ranks on a CPU) as far as the models' heads and the batch divide, tensor first.
    """

    tensor: int = Field(
        1, ge=1, description="tensor-parallel size (ranks that share a layer), or auto"
    )
    pipeline: int = Field(1, ge=1, description="pipeline-parallel size (groups of layers)")
    virtual_pipeline: int = Field(
        1,
        ge=1,
        description="chunks of the student's layers that each pipeline stage holds "
        "(megatron-core's interleaved schedule): stages wait less for each other, and send more",
    )
    context: int = Field(
        1,
        ge=1,
        description="context-parallel size: ranks that share the tokens of a microbatch, for long "
        "responses. Keys and values are gathered in every layer",
    )
    data: int = Field(1, ge=1, description="data-parallel replicas, or auto")
    expert: int = Field(
        1,
        ge=1,
        description="neighbouring ranks among tensor x context x data that share the experts of a "
        "layer, each holding whole ones; 1: experts are cut by tensor like other weights",
    )
    sequence: bool = Field(False, description="sequence parallelism beside tensor parallelism")
    recompute: Literal["none", "selective", "full"] = Field(
        "none",
        description="activations that the student's backward computes again instead of keeping. "
        "selective: those of attention and of the MLP or the experts; full: whole layers, of which "
        "only the inputs are kept. Less memory for more time; the gradients are the same",
    )
    recompute_layers: int | None = Field(
        None,
        ge=1,
        description="only so many layers of each pipeline stage, or chunk of one; null: all",
    )

    @property
    def ranks(self) -> int:
        """Ranks that train."""
        return self.tensor * self.pipeline * self.context * self.data
