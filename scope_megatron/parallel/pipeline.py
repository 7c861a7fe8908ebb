"""The only caller of megatron-core's schedules: forward-only scoring, and forward-backward.

Both walk over packed microbatches at any tensor x pipeline layout. Results exist on the last
pipeline stage only; :func:`score` hands them to every stage. Of packs every rank knows the lengths,
so no stage is told the shape of what it receives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator
from megatron.core.pipeline_parallel.schedules import get_schedule_table
from megatron.core.process_groups_config import ProcessGroupCollection
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
    between: dict[str, Any] = {}
    if topology.pp_size > 1:
        lengths = [pack.num_tokens for pack in packs]
        between["p2p_communicator"] = StageLink(topology, chunks, lengths)
        between["pg_collection"] = _groups(topology)
    told: list[Any] = schedule(
        forward_step_func=forward_step,
        data_iterator=packs_of_each[0] if single else packs_of_each,
        model=chunks[0] if single else list(chunks),
        num_microbatches=len(packs),
        seq_length=packs[0].num_tokens,  # StageLink knows each one's
        micro_batch_size=1,
        forward_only=forward_only,
        collect_non_loss_data=forward_only,
        **between,
    )
    return told


class StageLink(P2PCommunicator):
    """What pipeline stages send each other during one walk over packs of ``lengths`` tokens.

    megatron-core sends the shape of a tensor ahead of it where lengths differ. Its interleaved
    schedule sends tensors of both directions at a time, and where a pipeline has two stages, so
    that the next stage is the previous one as well, the shapes of the two are taken for each other.
    Here they are known: a stage receives in the order in which the schedule comes to the packs.
    """

    def __init__(
        self, topology: Topology, chunks: Sequence[torch.nn.Module], lengths: Sequence[int]
    ) -> None:
        config, last = get_attr_wrapped_model(chunks[0], "config"), len(chunks) - 1
        super().__init__(topology.pp_group, config)
        cut = topology.cp_size * (topology.tp_size if topology.sequence_parallel else 1)
        shapes = [(length // cut, 1, config.hidden_size) for length in lengths]
        group = config.microbatch_group_size_per_vp_stage if last else 1
        visits = get_schedule_table(len(lengths), len(chunks), group)
        # a model's first chunk receives nothing, and of its last one's output no gradient comes
        forth = [pack for pack, chunk in visits if chunk or not topology.is_first_stage]
        back = [pack for pack, chunk in visits if chunk or not topology.is_last_stage]
        self._forth = iter([shapes[pack] for pack in forth])
        self._back = iter([shapes[pack] for pack in back])

    def _communicate_shapes(
        self, tensor_send_next: object, tensor_send_prev: object, recv_prev: bool, recv_next: bool
    ) -> tuple[Sequence[int], Sequence[int]]:
        """Of the tensors that come from the previous and from the next stage."""
        return (next(self._forth) if recv_prev else ()), (next(self._back) if recv_next else ())

    def _communicate(self, **sent: Any) -> Any:
        """As megatron-core's. The schedule frees what it has sent by ``.data``, which gloo may
        still be reading: another tensor over the same memory keeps it."""
        for name in ("tensor_send_next", "tensor_send_prev"):
            if sent[name] is not None:
                sent[name] = sent[name].detach()
        return super()._communicate(**sent)


def _groups(topology: Topology) -> ProcessGroupCollection:
    """What the schedules take from megatron-core's globals otherwise, of the layout in place."""
    groups = ProcessGroupCollection()
    groups.tp = parallel_state.get_tensor_model_parallel_group()
    groups.cp = parallel_state.get_context_parallel_group()
    groups.pp = topology.pp_group
    groups.embd = parallel_state.get_embedding_group(check_initialized=False)
    groups.pos_embd = parallel_state.get_position_embedding_group(check_initialized=False)
    groups.dp_cp = parallel_state.get_data_parallel_group(with_context_parallel=True)
    return groups


@contextmanager
def _without_output_layer(model: torch.nn.Module) -> Iterator[None]:
    gpt = get_attr_wrapped_model(model, "post_process", return_model_obj=True)
    before = gpt.post_process
    gpt.post_process = False
    try:
        yield
    finally:
        gpt.post_process = before
