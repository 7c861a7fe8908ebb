"""The only caller of megatron-core's schedules: forward-only scoring, and forward-backward.

Both walk over packed microbatches at any tensor x pipeline layout. Results exist on the last
pipeline stage only; :func:`score` hands them to every stage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.utils import get_attr_wrapped_model
from torch import Tensor

from scope_megatron.parallel.packed import PackedSequences
from scope_megatron.parallel.topology import Topology, broadcast_from_last_stage
from scope_megatron.types import PackedBatch

RowFunction = Callable[[Tensor, int], Tensor]
LossFunction = Callable[[Tensor, int], tuple[Tensor, dict[str, Tensor]]]


@torch.no_grad()
def score(
    model: torch.nn.Module,
    packs: list[PackedBatch],
    row_function: RowFunction,
    topology: Topology,
    *,
    project: bool = True,
) -> list[Tensor]:
    """Forward-only pass; ``row_function(output, pack index) -> [T]`` on the last stage.

    The output is the logits [T, V/tp], or without ``project`` the hidden states before them
    (see :func:`hidden_states`). Returns the function's float32 result for every pack, on every
    rank.
    """
    if not packs:
        return []

    def collect(output: Tensor, index: int, non_loss_data: bool) -> Tensor:
        return row_function(_rows(output) if project else output, index).float()

    rows = _run(model, packs, collect, forward_only=True, project=project)
    if not topology.is_last_stage:
        device = packs[0].tokens.device
        rows = [torch.empty(pack.num_tokens, device=device) for pack in packs]
    flat = broadcast_from_last_stage(torch.cat(rows), topology)
    return list(flat.split([pack.num_tokens for pack in packs]))


@torch.no_grad()
def hidden_states(model: GPTModel, packs: list[PackedBatch]) -> list[Tensor]:
    """Forward-only pass that stops before the output layer.

    Returns the last stage's hidden states [T(/tp with sequence parallelism), 1, H] of every pack;
    other stages get an empty list. For a teacher whose logits are needed later: H is far smaller
    than V.
    """

    def collect(output: Tensor, index: int, non_loss_data: bool) -> Tensor:
        return output

    return _run(model, packs, collect, forward_only=True, project=False)


def forward_backward(
    model: torch.nn.Module,
    packs: list[PackedBatch],
    loss_function: LossFunction,
    *,
    project: bool = True,
) -> list[dict[str, Tensor]]:
    """Accumulate gradients of the sum of all packs' losses, then reduce them over the data ranks.

    ``loss_function(output, pack index) -> (scalar loss, metrics)``, of an output as in
    :func:`score`, must be normalised already: neither the number of microbatches nor of
    data-parallel ranks divides it again.
    Returns the metrics of every pack on the last stage, an empty list elsewhere.
    """

    def loss(output: Tensor, index: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        value, metrics = loss_function(_rows(output) if project else output, index)
        return value, torch.zeros((), dtype=torch.int, device=value.device), metrics

    return _run(model, packs, loss, forward_only=False, project=project)


def packed_forward(model: torch.nn.Module, batch: PackedBatch) -> Tensor:
    """Run one pack. The last stage returns logits [T, V/tp], the others hidden states."""
    return model(
        input_ids=batch.tokens[None],
        position_ids=batch.position_ids[None],
        attention_mask=None,
        packed_seq_params=PackedSequences.of(batch),
    )


def _run(
    model: torch.nn.Module,
    packs: list[PackedBatch],
    collect: Callable,
    *,
    forward_only: bool,
    project: bool,
) -> list:
    def forward_step(
        iterator: Iterator[tuple[int, PackedBatch]], module: torch.nn.Module
    ) -> tuple[Tensor, Callable]:
        index, pack = next(iterator)
        # only here: what the schedule does after the forward passes looks at post_process too
        with nullcontext() if project else _without_output_layer(module):
            output = packed_forward(module, pack)
        return output, partial(collect, index=index)

    return get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=iter(enumerate(packs)),
        model=model,
        num_microbatches=len(packs),
        seq_length=packs[0].num_tokens,  # packs differ: with pipelining, shapes travel along
        micro_batch_size=1,
        forward_only=forward_only,
        collect_non_loss_data=forward_only,
    )


def _rows(output: Tensor) -> Tensor:
    """[1, T, V/tp] as GPTModel returns it -> [T, V/tp]."""
    return output.squeeze(0)


@contextmanager
def _without_output_layer(model: torch.nn.Module) -> Iterator[None]:
    gpt = get_attr_wrapped_model(model, "post_process", return_model_obj=True)
    before = gpt.post_process
    gpt.post_process = False
    try:
        yield
    finally:
        gpt.post_process = before
