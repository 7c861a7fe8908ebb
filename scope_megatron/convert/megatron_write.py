"""Hugging Face weights -> megatron-core's checkpoint, with one parameter in memory at a time.

``dist_checkpointing.save`` wants a model that is filled. Here it gets one without memory, and a
strategy that writes the same format (``torch_dist``) and asks for every tensor when its turn comes.
"""

from __future__ import annotations

import math
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
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import StorageMeta
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from scope_megatron.convert.hf import ShardReader
from scope_megatron.convert.megatron_read import sharded_parameters
from scope_megatron.convert.workspace import Workspace

_VOCABULARY = ("embedding.word_embeddings.weight", "output_layer.weight")
_PART_BYTES = 32 * 2**20  # a vocabulary is larger than a layer: it is written in parts

Read = Callable[[], Tensor]
Place = tuple[str, tuple[int, ...]]  # key and global offset in the checkpoint


def save_streamed(
    model: torch.nn.Module,
    reader: ShardReader,
    workspace: Workspace,
    dtype: torch.dtype,
    max_file_bytes: int,
    advance: Callable[[int], None],
) -> None:
    """Write the checkpoint of a model that may be on the meta device, as the only process.

    Files of at most ``max_file_bytes`` (one piece may exceed it) go to the workspace; those that
    it has from an earlier attempt are kept. ``advance`` is called with the bytes of each tensor
    written. Raises OSError when the files cannot be written.
    """
    state: dict[str, Any] = {}
    reads: dict[Place, Read] = {}
    parameters = {key: name for key, name, _ in sharded_parameters(model)}
    for key, entry in model.sharded_state_dict().items():
        name = parameters.get(key, "")
        if isinstance(entry, ShardedTensorFactory):
            read = _reader(reader, name, tuple(entry.data.shape), 0, dtype)
            reads |= _pieces(entry, read)
        elif isinstance(entry, ShardedTensor):
            parts = _parts(entry) if name in _VOCABULARY else [entry]
            for number, part in enumerate(parts):
                read = _reader(reader, name, tuple(part.data.shape), number, dtype)
                reads[part.key, part.global_offset] = read
            state |= {f"{key}.{number}": part for number, part in enumerate(parts)}
            continue
        state[key] = entry
    strategy = _StreamingStrategy(reads, workspace, max_file_bytes, advance)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own, of torch's ShardedTensor
        try:
            dist_checkpointing.save(
                {"model": state}, str(workspace.files), sharded_strategy=strategy
            )
        except CheckpointException as error:  # a BaseException, with the failure in it
            reason, _ = next(iter(error.failures.values()))
            if isinstance(reason, ValueError | KeyboardInterrupt):
                raise reason from None
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
    """Places of the parts into which megatron-core's factory cuts gated projections."""
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

    def __init__(
        self,
        reads: dict[Place, Read],
        workspace: Workspace,
        max_file_bytes: int,
        advance: Callable[[int], None],
    ) -> None:
        super().__init__("torch_dist", 1)
        self._writer = _ResumingWriter(workspace, max_file_bytes, advance)
        self._planner = _ReadingPlanner(reads)

    @property
    def can_handle_sharded_objects(self) -> bool:
        return True

    def save(self, sharded_state_dict: dict[str, Any], checkpoint_dir: Path | str) -> None:
        state, _, _ = _replace_state_dict_keys_with_sharded_keys(sharded_state_dict, True)
        checkpoint.save(
            mcore_to_pyt_state_dict(state, False),
            storage_writer=self._writer,
            planner=self._planner,
        )


class _ReadingPlanner(MCoreSavePlanner):
    def __init__(self, reads: dict[Place, Read]) -> None:
        super().__init__(dedup_replicated_tensors=False, flatten_state_dict=False)
        self._reads = reads

    def resolve_data(self, write_item: WriteItem) -> Any:
        if write_item.type == WriteItemType.BYTE_IO:
            return super().resolve_data(write_item)
        place = write_item.index.fqn, tuple(write_item.index.offset)
        tensor = self._reads[place]().reshape(write_item.tensor_data.chunk.sizes).contiguous()
        whole = tensor.untyped_storage().nbytes() == tensor.nbytes
        return tensor if whole else tensor.clone()  # a view is saved with all that it views


class _ResumingWriter(checkpoint.FileSystemWriter):
    """torch's file format (serialized items, one after the other), in files of a limited size.

    The record of a file keeps where its items lie, so that one from an earlier attempt is used.
    """

    def __init__(
        self, workspace: Workspace, max_file_bytes: int, advance: Callable[[int], None]
    ) -> None:
        super().__init__(workspace.files)
        self._workspace, self._limit, self._advance = workspace, max_file_bytes, advance

    def storage_meta(self) -> StorageMeta:
        """Without the temporary path and a random number: the same input gives the same bytes."""
        return StorageMeta()

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        groups = self._groups(plan.items)
        names = [f"{plan.storage_data.prefix}{number}.distcp" for number in range(len(groups))]
        results: list[WriteResult] = []
        for name, items in zip(names, groups, strict=True):
            record = self._workspace.finished(name)
            if record is None:
                spans = self._write_file(name, items, planner)
            else:
                spans = record["notes"]
                self._advance(sum(map(_item_bytes, items)))
            for item, (start, length) in zip(items, spans, strict=True):
                info = _StorageInfo(name, start, length)
                results.append(WriteResult(item.index, length, info))
        future: Future[list[WriteResult]] = Future()
        future.set_result(results)
        return future

    def _groups(self, items: list[WriteItem]) -> list[list[WriteItem]]:
        groups: list[list[WriteItem]] = [[]]
        filled = 0
        for item in items:
            if groups[-1] and filled + _item_bytes(item) > self._limit:
                groups.append([])
                filled = 0
            groups[-1].append(item)
            filled += _item_bytes(item)
        return groups

    def _write_file(
        self, name: str, items: list[WriteItem], planner: SavePlanner
    ) -> list[tuple[int, int]]:
        with self._workspace.create(name) as file:
            spans = []
            for item in items:
                start, value = file.tell(), planner.resolve_data(item)
                if item.type == WriteItemType.BYTE_IO:
                    file.write(value.getbuffer())
                else:
                    torch.save(value, file)
                    self._advance(value.nbytes)
                spans.append((start, file.tell() - start))
            file.notes = spans
        return spans


def _item_bytes(item: WriteItem) -> int:
    """Bytes of a tensor; an object is small."""
    if item.tensor_data is None:
        return 0
    kind = item.tensor_data.properties.dtype
    return int(math.prod(item.tensor_data.chunk.sizes) * kind.itemsize)
