"""Hugging Face weights -> megatron-core's checkpoint, with one parameter in memory at a time.

``dist_checkpointing.save`` wants a model that is filled. Here it gets one without memory, and a
strategy that writes the same format (``torch_dist``) and asks for every tensor when its turn comes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.dist_checkpointing.strategies.base import SaveShardedStrategy
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreSavePlanner,
    _replace_state_dict_keys_with_sharded_keys,
    mcore_to_pyt_state_dict,
)
from torch import Tensor
from torch.distributed import checkpoint
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.planner import WriteItem, WriteItemType

from scope_megatron.convert.gather import global_parameters
from scope_megatron.convert.hf import ShardReader
from scope_megatron.convert.mapping import is_expert
from scope_megatron.parallel.topology import Topology

_VOCABULARY = ("embedding.word_embeddings.weight", "output_layer.weight")
_PART_BYTES = 32 * 2**20  # a vocabulary is larger than a layer: it is written in parts

Read = Callable[[], Tensor]
Place = tuple[str, tuple[int, ...]]  # key and global offset in the checkpoint


def save_streamed(
    model: torch.nn.Module,
    reader: ShardReader,
    topology: Topology,
    dtype: torch.dtype,
    directory: Path,
    advance: Callable[[int], None],
) -> None:
    """Write the checkpoint of a model that may be on the meta device; a collective.

    ``advance`` is called with the bytes of each tensor written. Raises OSError on every rank when
    one cannot write.
    """
    state: dict[str, Any] = {}
    names = {id(parameter): name for name, parameter in global_parameters(model)}
    local = {name: names[id(parameter)] for name, parameter in model.named_parameters()}
    reads: dict[Place, Read] = {}
    for key, entry in model.sharded_state_dict().items():
        # without a name: the tied copy of the embedding, under the embedding's key
        name = local.get(key, "output_layer.weight")
        if isinstance(entry, ShardedTensorFactory):
            rank = topology.shard_rank(is_expert(name))
            read = _reader(reader, name, tuple(entry.data.shape), rank, dtype)
            reads |= _pieces(entry, read)
        elif isinstance(entry, ShardedTensor):
            parts = _parts(entry) if name in _VOCABULARY else [entry]
            for number, part in enumerate(parts):
                rank = topology.shard_rank(is_expert(name)) * len(parts) + number
                read = _reader(reader, name, tuple(part.data.shape), rank, dtype)
                reads[part.key, part.global_offset] = read
            state |= {f"{key}.{number}": part for number, part in enumerate(parts)}
            continue
        state[key] = entry
    strategy = _StreamingStrategy(reads, advance)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own, of torch's ShardedTensor
        try:
            dist_checkpointing.save({"model": state}, str(directory), sharded_strategy=strategy)
        except CheckpointException as error:  # a BaseException, with every rank's failure in it
            reason, _ = next(iter(error.failures.values()))
            raise OSError(str(reason)) from reason


def _reader(
    reader: ShardReader, name: str, shape: tuple[int, ...], rank: int, dtype: torch.dtype
) -> Read:
    def read() -> Tensor:
        tensor = reader.shard(name, shape, rank).to(dtype)
        reader.release()  # what is mapped of the files counts as well
        return tensor

    return read


def _pieces(entry: ShardedTensorFactory, read: Read) -> dict[Place, Read]:
    """Where the parts of gated projections go, which megatron-core's factory cuts."""
    pieces: dict[Place, Read] = {}
    for number, piece in enumerate(entry.build()):

        def part(number: int = number) -> Tensor:
            return replace(entry, data=read()).build()[number].data

        pieces[piece.key, piece.global_offset] = part
    return pieces


def _parts(entry: ShardedTensor) -> list[ShardedTensor]:
    """Rows of a vocabulary as more tensor ranks would have them, each of at most _PART_BYTES."""
    count, rows = 1, entry.data.size(0)
    while entry.data.nbytes > count * _PART_BYTES and rows % (2 * count) == 0:
        count *= 2
    step = rows // count
    return [
        replace(
            entry,
            data=entry.data[number * step : (number + 1) * step],
            local_shape=(step, *entry.local_shape[1:]),
            global_offset=(entry.global_offset[0] + number * step, *entry.global_offset[1:]),
            axis_fragmentations=(
                entry.axis_fragmentations[0] * count,
                *entry.axis_fragmentations[1:],
            ),
        )
        for number in range(count)
    ]


class _StreamingStrategy(SaveShardedStrategy):
    """megatron-core's ``torch_dist`` save, with tensors read when they are written."""

    def __init__(self, reads: dict[Place, Read], advance: Callable[[int], None]) -> None:
        super().__init__("torch_dist", 1)
        self._reads, self._advance = reads, advance

    @property
    def can_handle_sharded_objects(self) -> bool:
        return True

    def save(self, sharded_state_dict: dict[str, Any], checkpoint_dir: Path | str) -> None:
        state, _, _ = _replace_state_dict_keys_with_sharded_keys(sharded_state_dict, True)
        checkpoint.save(
            mcore_to_pyt_state_dict(state, False),
            storage_writer=checkpoint.FileSystemWriter(checkpoint_dir, per_thread_copy_ahead=0),
            planner=_ReadingPlanner(self._reads, self._advance),
        )


class _ReadingPlanner(MCoreSavePlanner):
    def __init__(self, reads: dict[Place, Read], advance: Callable[[int], None]) -> None:
        super().__init__(dedup_replicated_tensors=False, flatten_state_dict=False)
        self._reads, self._advance = reads, advance

    def resolve_data(self, write_item: WriteItem) -> Any:
        if write_item.type == WriteItemType.BYTE_IO:
            return super().resolve_data(write_item)
        place = write_item.index.fqn, tuple(write_item.index.offset)
        tensor = self._reads[place]().reshape(write_item.tensor_data.chunk.sizes).contiguous()
        self._advance(tensor.nbytes)
        return tensor
