"""The only caller of megatron-core's schedules: forward-only scoring, and forward-backward.

Both walk over packed microbatches at any tensor x pipeline layout. Results exist on the last
pipeline stage only; :func:`score` hands them to every stage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.utils import get_attr_wrapped_model
from torch import Tensor

from scope_megatron.parallel.chunks import ReplicatedModel, model_chunks
from scope_megatron.parallel.context import ContextShare, sum_over_context
from scope_megatron.parallel.packed import PackedSequences
from scope_megatron.parallel.topology import Topology, broadcast_from_last_stage
from scope_megatron.types import PackedBatch

RowFunction = Callable[[Tensor, int], Tensor]
# (last hidden states, pack index) -> (scalar loss, number of tokens, anything)
LossFunction = Callable[[Tensor, int], tuple[Tensor, Tensor, Any]]


@torch.no_grad()
def score(
    model: torch.nn.Module,
    packs: list[PackedBatch],
    row_function: RowFunction,
    topology: Topology,
    *,
    columns: int = 1,
) -> list[Tensor]:
    """Forward-only pass; ``row_function(hidden states, pack index) -> [R, columns]`` at its end.

    The hidden states are the last stage's before the output layer, [T(/tp with sequence
    parallelism), 1, H]; with context parallelism of this rank's tokens, and the function gives
    zeros for the others' rows. Returns its float32 result for every pack, on every rank.
    """
    if not packs:
        return []

    def collect(output: Tensor, index: int, non_loss_data: bool) -> Tensor:
        return row_function(output, index).float()

    rows: list[Tensor] = _walk(model_chunks(model), packs, collect, topology, forward_only=True)
    if not columns:
        return rows
    counts = [pack.num_rows for pack in packs]
    if topology.is_last_stage:
        flat = sum_over_context(torch.cat(rows), topology)
    else:
        flat = packs[0].tokens.new_empty(sum(counts), columns, dtype=torch.float32)
    return list(broadcast_from_last_stage(flat, topology).split(counts))


def forward_backward(
    model: ReplicatedModel,
    packs: list[PackedBatch],
    loss_function: LossFunction,
    topology: Topology,
) -> list[Any]:
    """Accumulate gradients of the sum of all packs' losses, then reduce them over the data ranks.

    ``loss_function(hidden states, pack index)``, of what :func:`score` describes, must give a loss
    that is normalised already: it says 0 tokens, and neither the number of microbatches nor of
    data-parallel ranks divides it again.
    Returns the third of its results for every pack on the last stage, an empty list elsewhere.
    """
    told: list[Any] = _walk(model.chunks, packs, loss_function, topology, forward_only=False)
    return told


def packed_forward(
    model: torch.nn.Module, batch: PackedBatch, share: ContextShare | None = None
) -> Tensor:
    """Run one pack, or this rank's share of it. The last stage returns logits [T, V/tp], the others
    hidden states."""
    tokens = batch.tokens if share is None else batch.tokens[share.tokens]
    sequences = PackedSequences.of(batch, share)
    assert sequences.position_ids is not None
    return model(
        input_ids=tokens[None],
        position_ids=sequences.position_ids[None],
        attention_mask=None,
        packed_seq_params=sequences,
    )


def _walk(
    chunks: Sequence[torch.nn.Module],
    packs: list[PackedBatch],
    collect: Callable,
    topology: Topology,
    *,
    forward_only: bool,
) -> list[Any]:
    """Run the schedule: one microbatch is one pack. With several chunks, interleaved."""

    def forward_step(
        iterator: Iterator[tuple[int, PackedBatch]], module: torch.nn.Module
    ) -> tuple[Tensor, Callable]:
        index, pack = next(iterator)
        # only here: what the schedule does after the forward passes looks at post_process too
        with _without_output_layer(module):
            output = packed_forward(module, pack, ContextShare.of(pack, topology))
        return output, partial(collect, index=index)

    single, packs_of_each = len(chunks) == 1, [iter(enumerate(packs)) for _ in chunks]
    virtual = None if single else len(chunks)
    schedule = get_forward_backward_func(pp_size=topology.pp_size, vp_size=virtual)
    told: list[Any] = schedule(
        forward_step_func=forward_step,
        data_iterator=packs_of_each[0] if single else packs_of_each,
        model=chunks[0] if single else list(chunks),
        num_microbatches=len(packs),
        seq_length=packs[0].num_tokens,  # packs differ: with pipelining, shapes travel along
        micro_batch_size=1,
        forward_only=forward_only,
        collect_non_loss_data=forward_only,
    )
    return told


@contextmanager
def _without_output_layer(model: torch.nn.Module) -> Iterator[None]:
    gpt = get_attr_wrapped_model(model, "post_process", return_model_obj=True)
    before = gpt.post_process
    gpt.post_process = False
    try:
        yield
    finally:
        gpt.post_process = before
