"""The load-balancing loss of a mixture of experts, and how even its experts are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from megatron.core.transformer.moe.moe_utils import (
    clear_aux_losses_tracker,
    get_moe_layer_wise_logging_tracker,
)
from megatron.core.transformer.transformer_config import TransformerConfig

from scope_megatron.parallel import platform
from scope_megatron.parallel.agree import all_sum
from scope_megatron.parallel.chunks import model_chunks
from scope_megatron.parallel.topology import Topology
from scope_megatron.types import PackedBatch

_NAME = "load_balancing_loss"


class ExpertBalance:
    """``objective.moe_aux_loss_coeff`` at work: megatron-core's ``aux_loss`` of every layer,
    E sum_i f_i P_i over a microbatch (Switch Transformer, equations 4 to 6; f_i: share of the
    choices that expert i got, P_i: mean probability of it), as a mean over the tokens of the
    update, whatever its microbatches and replicas."""

    def __init__(self, coefficient: float, model: torch.nn.Module, topology: Topology) -> None:
        self._coefficient, self._topology = coefficient, topology
        self._configs: list[TransformerConfig] = [chunk.config for chunk in model_chunks(model)]
        self._microbatches = 0

    def begin(self, packs: Sequence[PackedBatch]) -> None:
        """An update over these packs is to come (collective over the replicas)."""
        if not self._coefficient:
            return
        clear_aux_losses_tracker()
        self._microbatches = len(packs)
        (tokens,) = all_sum([sum(pack.num_tokens for pack in packs)], self._topology.dp_group)
        # a rank multiplies its part of the loss by its own tokens: those of a pack lie on so many
        ranks = self._topology.tp_size * self._topology.cp_size
        for config in self._configs:
            config.moe_aux_loss_coeff = self._coefficient * ranks / tokens

    def measured(self) -> tuple[float, int]:
        """(sum, count) of E sum_i f_i P_i over this replica's microbatches and layers; 1 is even
        (collective over the replica)."""
        if not self._coefficient:
            return 0.0, 0
        held = get_moe_layer_wise_logging_tracker().get(_NAME)
        total = torch.zeros((), dtype=torch.float64, device=platform.device())
        if held is not None:
            total += held["values"].sum()
        dist.all_reduce(total, group=self._topology.mp_group)
        return float(total), self._microbatches * int(self._configs[0].num_layers)
