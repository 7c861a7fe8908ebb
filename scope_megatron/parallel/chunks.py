"""The parts of a model that one stage of a virtual pipeline holds.

With ``parallel.virtual_pipeline`` v a stage holds v chunks of consecutive layers, stage s the
chunks s, p + s, 2 p + s ... of p stages; a microbatch passes every stage v times. The ranks wait
less while the pipeline fills. Without it a model is one chunk: itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel


class ModelChunks(torch.nn.ModuleList):
    """Several chunks, in the order in which a microbatch passes them."""

    @property
    def config(self) -> Any:
        """megatron-core's settings of the first chunk: by these the schedule goes."""
        return self[0].config


def model_chunks(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The chunks of a model, its wrappers opened; a model without chunks is one."""
    while hasattr(model, "module"):  # DistributedDataParallel, Float16Module
        model = model.module
    return list(model) if isinstance(model, ModelChunks) else [model]


class ReplicatedModel:
    """A student's chunks with buffers for their gradients, which are summed over the replicas."""

    def __init__(self, chunks: Sequence[DistributedDataParallel]) -> None:
        self.chunks = list(chunks)

    @property
    def buffers(self) -> list[Any]:
        """megatron-core's buffers of gradients, but for experts."""
        return [buffer for chunk in self.chunks for buffer in chunk.buffers]

    @property
    def expert_parallel_buffers(self) -> list[Any]:
        """Those of experts."""
        return [buffer for chunk in self.chunks for buffer in chunk.expert_parallel_buffers]

    def zero_grad_buffer(self) -> None:
        for chunk in self.chunks:
            chunk.zero_grad_buffer()

    def offload_grad_buffers(self) -> None:
        """Free the device of them."""
        for chunk in self.chunks:
            chunk.offload_grad_buffers()

    def restore_grad_buffers(self) -> None:
        """Bring them back."""
        for chunk in self.chunks:
            chunk.restore_grad_buffers()
