"""A distributed checkpoint -> Hugging Face files, with one parameter in memory."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from scope_megatron.convert.hf import ShardReader
from scope_megatron.convert.mapping import Shape
from scope_megatron.convert.megatron_read import LazyCheckpoint
from scope_megatron.convert.workspace import Workspace

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_COMPARED_BYTES = 16 * 2**20
_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16"}


@dataclass
class _Shard:
    """A file to write: its parameters, and the tensors that they become."""

    parameters: list[str] = field(default_factory=list)
    shapes: dict[str, Shape] = field(default_factory=dict)

    def nbytes(self, dtype: torch.dtype) -> int:
        return sum(map(math.prod, self.shapes.values())) * int(dtype.itemsize)


def export_streamed(
    source: LazyCheckpoint,
    workspace: Workspace,
    dtype: torch.dtype,
    max_shard_bytes: int,
    advance: Callable[[int], None],
) -> None:
    """Write safetensors of at most ``max_shard_bytes`` (one parameter may exceed it), and an index.

    Files that the workspace has from an earlier attempt are kept; they are the same bytes.
    ``advance`` is called with the bytes of each tensor, and of each file that is kept.
    """
    shards = _plan(source, dtype, max_shard_bytes)
    names = [_file_name(number, len(shards)) for number in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        if workspace.finished(name):
            advance(shard.nbytes(dtype))
            continue
        with workspace.create(name) as file:
            file.write(_header(shard, dtype))
            for parameter in shard.parameters:
                for hf_name, tensor in source.hf_tensors(parameter):
                    _check_shape(hf_name, tensor, shard.shapes[hf_name])
                    file.write(raw_bytes(tensor.to(dtype)))
                    advance(tensor.numel() * dtype.itemsize)
    if len(shards) > 1:
        _write_index(workspace, dict(zip(names, shards, strict=True)), dtype)


def _plan(source: LazyCheckpoint, dtype: torch.dtype, limit: int) -> list[_Shard]:
    """The files; one parameter's tensors are in the same one."""
    shapes = source.mapping.hf_shapes()
    shards = [_Shard()]
    for parameter in source.names:
        parts = {name: shapes[name] for name in source.mapping.find(parameter)[1]}
        size = _Shard(shapes=parts).nbytes(dtype)
        if shards[-1].parameters and shards[-1].nbytes(dtype) + size > limit:
            shards.append(_Shard())
        shards[-1].parameters.append(parameter)
        shards[-1].shapes |= parts
    return shards


def _file_name(number: int, count: int) -> str:
    return _SINGLE if count == 1 else f"model-{number + 1:05d}-of-{count:05d}.safetensors"


def _header(shard: _Shard, dtype: torch.dtype) -> bytes:
    """The start of a safetensors file: the library can only write tensors that it has all of."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shard.shapes.items():
        end = offset + math.prod(shape) * dtype.itemsize
        entries[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data starts at a multiple of 8
    return len(text).to_bytes(8, "little") + text


def _check_shape(name: str, tensor: Tensor, expected: Shape) -> None:
    if tuple(tensor.shape) != expected:
        raise ValueError(
            f"tensor {name!r} has shape {tuple(tensor.shape)}, but config.json asks for {expected}"
        )


def _write_index(workspace: Workspace, shards: dict[str, _Shard], dtype: torch.dtype) -> None:
    weight_map = {name: file for file, shard in shards.items() for name in shard.shapes}
    total = sum(shard.nbytes(dtype) for shard in shards.values())
    content = {"metadata": {"total_size": total}, "weight_map": weight_map}
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    (workspace.files / _INDEX).write_text(text, encoding="utf-8")


def raw_bytes(tensor: Tensor) -> Any:
    """A tensor's memory as a buffer of bytes."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy()


def compare_checkpoints(
    megatron: LazyCheckpoint,
    hf: ShardReader,
    dtype: torch.dtype,
    advance: Callable[[int], None],
) -> tuple[int, str]:
    """Read both sides back; (number of tensors, SHA-256 over them). ValueError at a difference."""
    total, count = hashlib.sha256(), 0
    tensors = (part for name in megatron.names for part in megatron.hf_tensors(name))
    for name, tensor in tensors:
        found = hashlib.sha256(raw_bytes(tensor.to(dtype))).digest()
        if found != _digest(hf, name, tensor.shape, dtype):
            raise ValueError(f"tensor {name!r} does not read back as it was")
        total.update(found)
        count += 1
        advance(tensor.numel() * dtype.itemsize)
    if count != len(megatron.mapping.hf_shapes()):
        raise ValueError(f"{count} tensors were read back, not all of the model's")
    return count, total.hexdigest()


def _digest(hf: ShardReader, name: str, shape: Shape, dtype: torch.dtype) -> bytes:
    """SHA-256 of a tensor in the files, a few rows in memory at a time."""
    digest = hashlib.sha256()
    step = max(1, _COMPARED_BYTES // (4 * math.prod(shape[1:])))
    for start in range(0, shape[0], step):
        rows = hf.rows(name, start, min(start + step, shape[0]))
        digest.update(raw_bytes(rows.to(dtype)))
        del rows  # it may be a view of the file, which then stays mapped
        hf.release()
    return digest.digest()
