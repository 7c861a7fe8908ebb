"""The model's parameters, named and shaped as the rollout engine takes them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scope_megatron.convert.gather import iter_full_tensors
from scope_megatron.engine.reshard import EngineLayout, ReshardPlan
from scope_megatron.family import family_of, is_tied
from scope_megatron.parallel.agree import any_rank
from scope_megatron.parallel.topology import Topology


@dataclass(frozen=True)
class ModelParameters:
    """The trainer's model as what the engine is sent; iterated: :func:`engine_parameters`."""

    model: torch.nn.Module
    hf: dict[str, Any]
    topology: Topology
    bucket_bytes: int

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return engine_parameters(self.model, self.hf, self.topology, self.bucket_bytes)

    @property
    def is_main(self) -> bool:
        return self.topology.is_main

    def plan(self, layout: EngineLayout) -> ReshardPlan:
        """For an engine on these ranks."""
        return ReshardPlan(self, layout)

    def any_rank(self, flag: bool) -> bool:
        """Among the ranks of a replica."""
        return any_rank(flag, self.topology.mp_group)


def engine_parameters(
    model: torch.nn.Module, hf: dict[str, Any], topology: Topology, bucket_bytes: int
) -> Iterator[tuple[str, Tensor]]:
    """Every (name, tensor) for vLLM's ``reload_weights(weights_iterator=...)``; a collective.

    Tied embeddings come twice, also as ``lm_head.weight``: vLLM's CPU build packs the output
    layer's weights into a copy, which stays at the old values unless the name is loaded too.
    Its models without an output layer (``Family.engine_output_layer``) get one name.
    """
    tied = is_tied(hf) and family_of(hf).engine_output_layer
    for name, tensor in iter_full_tensors(model, hf, topology, bucket_bytes):
        tensor = tensor.contiguous()
        yield name, tensor
        if tied and name == "model.embed_tokens.weight":
            yield "lm_head.weight", tensor
        del tensor  # before the next bucket is gathered
