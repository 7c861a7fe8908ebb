"""megatron-core's distributed checkpoint, read one parameter at a time.

The index (``.metadata``) says where every piece of every tensor lies. Whatever layout wrote the
checkpoint, and whatever else it holds (an optimizer), only the pieces asked for are read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader, LoadPlan
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from scope_megatron.convert.gather import global_parameters
from scope_megatron.convert.mapping import Mapping


def sharded_parameters(model: torch.nn.Module) -> Iterator[tuple[str, str, Any]]:
    """(key of the state dict, name over the whole model, description) of every parameter."""
    names = {id(parameter): name for name, parameter in global_parameters(model)}
    local = {name: names[id(parameter)] for name, parameter in model.named_parameters()}
    for key, entry in model.sharded_state_dict().items():
        if isinstance(entry, ShardedTensor | ShardedTensorFactory):
            # without a name: the tied copy of the embedding, under the embedding's key
            yield key, local.get(key, "output_layer.weight"), entry


class LazyCheckpoint:
    """The weights in a checkpoint of ``model``, which may be on the meta device."""

    def __init__(self, model: torch.nn.Module, mapping: Mapping, directory: Path) -> None:
        """Raises ValueError (one line) when the checkpoint is not a whole one of this model."""
        self.directory, self.mapping = directory, mapping
        self._reader = FileSystemReader(directory)
        try:
            metadata = self._reader.read_metadata()
        except (OSError, EOFError, UnpicklingError, AttributeError, ValueError) as error:
            reason = (str(error).strip() or repr(error)).splitlines()[0]
            raise ValueError(f"{directory}: not a distributed checkpoint ({reason})") from error
        self._reader.set_up_storage_reader(metadata, is_coordinator=True)
        self._stored: dict[str, Any] = metadata.state_dict_metadata
        self._entries = {name: entry for _, name, entry in sharded_parameters(model)}
        self.names = [name for name in self._entries if not mapping.find(name)[0].duplicate]
        self._check_files(metadata.storage_data)
        self._check_tensors()

    def hf_tensors(self, name: str) -> list[tuple[str, Tensor]]:
        """The Hugging Face tensors that a parameter is made into (names, full tensors)."""
        rule, names = self.mapping.find(name)
        tensors = rule.to_hf(self.parameter(name)[None], self.mapping.sizes)
        return list(zip(names, tensors, strict=True))

    def parameter(self, name: str) -> Tensor:
        """A parameter in the checkpoint's dtype; a vocabulary with the rows that are stored."""
        entry = self._entries[name]
        if isinstance(entry, ShardedTensorFactory):
            return entry.merge_fn([self._read(name, piece) for piece in entry.build()])
        return self._read(name, entry)

    def _read(self, name: str, piece: ShardedTensor) -> Tensor:
        key = self._key(name, piece)
        stored = self._stored[key]
        sizes = [1] * piece.prepend_axis_num + list(piece.local_shape)
        if piece.allow_shape_mismatch:  # a vocabulary: how far it is padded depends on the writer
            sizes[0] = stored.size[0]
        wanted = ChunkStorageMetadata(torch.Size(piece.global_offset), torch.Size(sizes))
        items = create_read_items_for_chunk_list(key, stored, [wanted])
        if sum(math.prod(item.lengths) for item in items) != math.prod(sizes):
            raise ValueError(f"{self.directory}: pieces of tensor {key!r} are missing")
        target = _Target(torch.empty(sizes, dtype=stored.properties.dtype))
        try:
            for item in items:  # one at a time: a stored piece may be large
                self._reader.read_data(LoadPlan([item]), target)
        except (OSError, EOFError, RuntimeError, UnpicklingError, AssertionError) as error:
            reason = (str(error).strip() or repr(error)).splitlines()[0]
            raise ValueError(f"{self.directory}: tensor {key!r} is damaged ({reason})") from error
        return target.tensor.reshape(sizes[piece.prepend_axis_num :])

    def _key(self, name: str, piece: ShardedTensor) -> str:
        """The tensor's key, or the one that other layers' modules give to the same parameter."""
        if piece.key in self._stored:
            return str(piece.key)
        for other in self.mapping.find(name)[0].megatron:
            key = other.replace("decoder.layers.{layer}.", "decoder.layers.")
            if key in self._stored:
                return key
        raise ValueError(f"{self.directory}: tensor {piece.key!r} is missing")

    def _check_files(self, storage: dict[Any, Any]) -> None:
        """Every file is there and as long as the index needs it."""
        ends: dict[str, int] = {}
        for info in storage.values():
            end = info.offset + info.length
            ends[info.relative_path] = max(end, ends.get(info.relative_path, 0))
        for file, end in sorted(ends.items()):
            path = self.directory / file
            if not path.is_file():
                raise ValueError(f"{path} is missing although the checkpoint's index names it")
            if path.stat().st_size < end:
                raise ValueError(
                    f"{path} has {path.stat().st_size} bytes, but the checkpoint's index asks for "
                    f"{end}"
                )

    def _check_tensors(self) -> None:
        """Every parameter is there in its shape, and the model has no other."""
        used = set()
        for name, entry in self._entries.items():
            factory = isinstance(entry, ShardedTensorFactory)
            for piece in entry.build() if factory else [entry]:
                used.add(self._key(name, piece))
                self._check_tensor(self._key(name, piece), piece)
        rooms = {key.partition(".")[0] for key in used} | {"output_layer"}
        for key, stored in self._stored.items():
            ours = isinstance(stored, TensorStorageMetadata) and key.partition(".")[0] in rooms
            if ours and key not in used:
                raise ValueError(
                    f"{self.directory}: tensor {key!r} is not part of {self.mapping.architecture}"
                )

    def _check_tensor(self, key: str, piece: ShardedTensor) -> None:
        stored, expected = self._stored[key], tuple(piece.global_shape)
        found = tuple(stored.size)
        least = self.mapping.sizes.vocab
        padded = piece.allow_shape_mismatch and found[1:] == expected[1:] and found[0] >= least
        if found != expected and not padded:
            raise ValueError(
                f"{self.directory}: tensor {key!r} has shape {found}, but config.json asks for "
                f"{expected}"
            )
        kind = stored.properties.dtype
        if not kind.is_floating_point or kind.itemsize < 2:
            raise ValueError(
                f"{self.directory}: tensor {key!r} is {str(kind).removeprefix('torch.')}; only "
                "unquantized weights can be converted"
            )


class _Target:
    """Target tensors of a read: the part of torch's LoadPlanner that the reader calls."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def resolve_tensor(self, item: ReadItem) -> Tensor:
        view = self.tensor
        for dim, (start, length) in enumerate(zip(item.dest_offsets, item.lengths, strict=True)):
            view = view.narrow(dim, start, length)
        return view

    def commit_tensor(self, item: ReadItem, tensor: Tensor) -> None:
        """Nothing to do: the view was filled."""
