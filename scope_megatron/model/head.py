"""Output head of a model: last hidden states, output weight and cap of the logits, for fusing."""

from __future__ import annotations

import torch
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from torch import Tensor

from scope_megatron.parallel.chunks import model_chunks
from scope_megatron.parallel.topology import Topology


def output_weight(model: torch.nn.Module) -> Tensor:
    """[V/tp, H] of the last stage, the embedding's own where the two are tied."""
    gpt = model_chunks(model)[-1]
    if gpt.share_embeddings_and_output_weights:
        return gpt.shared_embedding_or_output_weight()
    return gpt.output_layer.weight


def caps_logits(model: torch.nn.Module) -> bool:
    """Whether logits are more than hidden states times the output weight (Gemma 2's cap)."""
    return model_chunks(model)[-1].config.logit_softcap is not None


def cap(logits: Tensor, model: torch.nn.Module) -> Tensor:
    """Logits [..., V/tp] as the model caps them: c tanh(logits / c), or unchanged."""
    limit = model_chunks(model)[-1].config.logit_softcap
    return logits if limit is None else (logits / limit).tanh() * limit


def head_input(hidden: Tensor, topology: Topology, *, copies: bool = False) -> Tensor:
    """Hidden states as the last stage gives them, [T(/tp), 1, H] -> [T, H] on every tensor rank.

    With sequence parallelism the backward is a reduce-scatter. Without it the gradient must be
    summed over the tensor ranks: by the backward with ``copies``, else by whoever multiplies with
    a shard of the output weight.
    """
    if topology.sequence_parallel:
        hidden = gather_from_sequence_parallel_region(hidden)
    elif copies:
        hidden = copy_to_tensor_model_parallel_region(hidden)
    return hidden.squeeze(1)
