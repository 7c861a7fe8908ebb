"""Hugging Face model directories: read into a sharded model, and written from one."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from scope_megatron.convert.gather import global_parameters, iter_full_tensors
from scope_megatron.convert.mapping import Mapping, Shape, is_expert
from scope_megatron.convert.pickles import INDEX as PICKLE_INDEX
from scope_megatron.convert.pickles import SINGLE as PICKLE_SINGLE
from scope_megatron.convert.pickles import PickleFile
from scope_megatron.disk import commit_directory, is_occupied, make_temporary
from scope_megatron.parallel.agree import raise_together
from scope_megatron.parallel.topology import Topology

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_REOPEN_BYTES = 32 * 2**20
_FLOATS = ("F64", "F32", "F16", "BF16")  # safetensors' names; anything else is quantized

# What a model directory holds beside config.json and the weights.
COMPANIONS = (
    "tokenizer*",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "generation_config.json",
)


def load_hf_weights(
    model: torch.nn.Module, directory: Path | str, hf: dict[str, Any], topology: Topology
) -> None:
    """Fill this rank's shard of the model from a directory of safetensors, in the model's dtype.

    Every rank reads only its own rows and columns. Every rank checks all of the files' names,
    shapes and dtypes first, so a wrong file is refused by all of them alike: ValueError naming
    the tensor and the file.
    """
    reader = ShardReader(directory, hf)
    with torch.no_grad():
        for name, parameter in global_parameters(model):
            rank = topology.shard_rank(is_expert(name))
            parameter.copy_(reader.shard(name, tuple(parameter.shape), rank))


class ShardReader:
    """A directory of safetensors whose headers were checked, read one parameter at a time.

    With ``allow_pickle`` a directory without safetensors may hold ``pytorch_model*.bin``.
    """

    def __init__(
        self, directory: Path | str, hf: dict[str, Any], allow_pickle: bool = False
    ) -> None:
        self.mapping = Mapping(hf)
        self._checkpoint = _Checkpoint(Path(directory), allow_pickle)
        self._checkpoint.check(self.mapping)

    def shard(self, name: str, shape: Shape, rank: int) -> Tensor:
        """Tensor rank ``rank``'s part, of this shape, of a Megatron parameter."""
        rule, names = self.mapping.find(name)
        sources = [self._checkpoint.slice(hf_name) for hf_name in names]
        return rule.to_megatron(sources, self.mapping.sizes, rank, shape)

    def release(self) -> None:
        """Close the files until the next read (a tensor that is a view of one keeps it open)."""
        self._checkpoint.close()

    def tensor(self, name: str) -> Tensor:
        """A whole tensor under its Hugging Face name."""
        return self._checkpoint.slice(name)[:]

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows of a tensor under its Hugging Face name."""
        return self._checkpoint.slice(name)[start:stop]


class _Checkpoint:
    """The safetensors files of a directory, of which only the headers are read at first.

    Files are mapped into memory, and what was read of them counts as this process's memory until
    they are closed: they are opened again after every ``_REOPEN_BYTES``.
    """

    def __init__(self, directory: Path, allow_pickle: bool) -> None:
        self.directory = directory
        self.files: dict[str, Path] = {}  # tensor -> the file that has it
        self._handles: dict[Path, Any] = {}
        self._read_bytes = 0
        index, indexed = _weight_files(directory, allow_pickle)
        for path in indexed:
            self.files.update(dict.fromkeys(self._handle(path).keys(), path))
        for path, names in indexed.items():
            for name in names:
                if self.files.get(name) != path:
                    raise ValueError(f"{index}: tensor {name!r} is not in {path.name}")

    def _handle(self, path: Path) -> Any:
        if path not in self._handles:
            self._handles[path] = _open(path)
        return self._handles[path]

    def close(self) -> None:
        self._handles.clear()
        self._read_bytes = 0

    def slice(self, name: str) -> Any:
        if self._read_bytes > _REOPEN_BYTES:
            self.close()
        view = self._handle(self.files[name]).get_slice(name)
        self._read_bytes += 4 * math.prod(view.get_shape())  # as if float32
        return view

    def check(self, mapping: Mapping) -> None:
        """Every tensor of the model is there in its shape, and no other."""
        expected = mapping.hf_shapes()
        for name, shape in expected.items():
            if name not in self.files:
                raise ValueError(f"{self.directory}: tensor {name!r} is missing")
            self._check_tensor(name, shape)
        for name, path in self.files.items():
            ignored = name.endswith("rotary_emb.inv_freq") or (
                mapping.tied and name == "lm_head.weight"
            )
            if name not in expected and not ignored:
                raise ValueError(f"{path}: tensor {name!r} is not part of {mapping.architecture}")
        self._read_bytes = 0

    def _check_tensor(self, name: str, shape: Shape) -> None:
        path = self.files[name]
        view = self._handle(path).get_slice(name)
        found = tuple(view.get_shape())
        if found != shape:
            raise ValueError(
                f"{path}: tensor {name!r} has shape {found}, but config.json asks for {shape}"
            )
        if view.get_dtype() not in _FLOATS:
            raise ValueError(
                f"{path}: tensor {name!r} is {view.get_dtype()}; only unquantized weights "
                f"({', '.join(_FLOATS)}) can be loaded"
            )


def _open(path: Path) -> Any:
    if path.suffix == ".bin":
        return PickleFile(path)
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: not a complete safetensors file ({error})") from error


def _weight_files(directory: Path, allow_pickle: bool) -> tuple[Path, dict[Path, list[str]]]:
    """The index, and the files of a model with the tensors that the index, if any, puts there."""
    names = [(_INDEX, _SINGLE)] + [(PICKLE_INDEX, PICKLE_SINGLE)] * allow_pickle
    for index, single in ((directory / index, directory / single) for index, single in names):
        if index.is_file():
            return index, _indexed_files(directory, index)
        if single.is_file():
            return index, {single: []}
    for pattern in ("*.bin", "*.pt", "*.pth"):
        for path in sorted(directory.glob(pattern)):
            raise ValueError(
                f"{path} is a pickle, which runs code when it is opened; save the model as "
                "safetensors, or read pytorch_model.bin with torch's weights-only loader: "
                "tools/convert_hf_checkpoint.py --allow-pickle"
            )
    raise ValueError(f"{directory}: there is neither {_SINGLE} nor {_INDEX}")


def _indexed_files(directory: Path, index: Path) -> dict[Path, list[str]]:
    try:
        weight_map: dict[str, str] = json.loads(index.read_text())["weight_map"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{index}: not an index of weight files ({error!r})") from error
    files: dict[Path, list[str]] = {}
    for name, file in weight_map.items():
        if not (directory / file).is_file():
            raise ValueError(f"{index}: tensor {name!r} is in {file}, which does not exist")
        files.setdefault(directory / file, []).append(name)
    return files


def export_hf(
    model: torch.nn.Module,
    hf: dict[str, Any],
    topology: Topology,
    source_dir: Path | str,
    out_dir: Path | str,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = 2 * 2**30,
    bucket_bytes: int = 256 * 2**20,
    overwrite: bool = False,
    advance: Callable[[int], None] = lambda nbytes: None,
) -> None:
    """Write the model as a Hugging Face directory; a collective over all ranks.

    Rank 0 writes sharded safetensors (in ``dtype``, default the model's), holding one shard of at
    most ``max_shard_bytes`` at a time, config.json, and the tokenizer and generation files of
    ``source_dir``. Everything goes to a temporary directory beside ``out_dir`` that is synced to
    disk and renamed at the end, so ``out_dir`` is complete or absent.

    Rank 0 calls ``advance`` with the bytes of each tensor.

    Raises ValueError on every rank when ``out_dir`` is not empty (unless ``overwrite``), and
    OSError on every rank when writing fails.
    """
    out_dir = Path(out_dir)
    refusal = None
    if topology.is_main and not overwrite and is_occupied(out_dir):
        refusal = ValueError(f"{out_dir} is not empty; choose another directory")
    raise_together(refusal)
    failure: Exception | None = None
    if topology.dp_rank == 0 or topology.ep_size > 1:
        writer = None
        for name, tensor in iter_full_tensors(model, hf, topology, bucket_bytes):
            if not topology.is_main or failure:
                continue  # the other ranks wait in the next collective: go through all of them
            try:
                writer = writer or _Writer(out_dir, dtype, max_shard_bytes)
                writer.add(name, tensor)
                advance(tensor.nbytes)
            except Exception as error:
                failure = error
        if writer and not failure:
            try:
                writer.finish(hf, Path(source_dir))
            except Exception as error:
                failure = error
        if writer and failure:
            shutil.rmtree(writer.directory, ignore_errors=True)
    raise_together(OSError(f"cannot write {out_dir}: {failure}") if failure else None)


class _Writer:
    """Writes tensors as they come, one shard in memory, into a temporary directory."""

    def __init__(self, out_dir: Path, dtype: torch.dtype | None, max_shard_bytes: int) -> None:
        self.out_dir = out_dir
        self.directory = make_temporary(out_dir)
        self.dtype = dtype
        self.max_shard_bytes = max_shard_bytes
        self.shards: list[list[str]] = []  # names of the tensors of each written shard
        self.total_bytes = 0
        self._pending: dict[str, Tensor] = {}
        self._pending_bytes = 0

    def add(self, name: str, tensor: Tensor) -> None:
        self.dtype = self.dtype or tensor.dtype
        tensor = tensor.to("cpu", self.dtype, copy=True).contiguous()
        if self._pending and self._pending_bytes + tensor.nbytes > self.max_shard_bytes:
            self._flush()
        self._pending[name] = tensor
        self._pending_bytes += tensor.nbytes

    def finish(self, hf: dict[str, Any], source_dir: Path) -> None:
        self._flush()
        self._name_shards()
        copy_companions(source_dir, self.directory)
        write_config(hf, self.dtype, self.directory)
        commit_directory(self.directory, self.out_dir)

    def _flush(self) -> None:
        path = self.directory / f"{len(self.shards)}.safetensors"
        save_file(self._pending, path, metadata={"format": "pt"})
        path.chmod(self.directory.stat().st_mode & 0o666)  # safetensors keeps it to the owner
        self.shards.append(list(self._pending))
        self.total_bytes += self._pending_bytes
        self._pending, self._pending_bytes = {}, 0

    def _name_shards(self) -> None:
        count = len(self.shards)
        if count == 1:
            (self.directory / "0.safetensors").rename(self.directory / _SINGLE)
            return
        weight_map: dict[str, str] = {}
        for number, names in enumerate(self.shards):
            file = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
            (self.directory / f"{number}.safetensors").rename(self.directory / file)
            weight_map |= dict.fromkeys(names, file)
        index = {"metadata": {"total_size": self.total_bytes}, "weight_map": weight_map}
        _write_json(self.directory / _INDEX, index)


def copy_companions(source_dir: Path, directory: Path) -> None:
    """Copy the tokenizer and generation files of a model directory (not config.json)."""
    for pattern in COMPANIONS:
        for path in source_dir.glob(pattern):
            if path.is_file():
                shutil.copyfile(path, directory / path.name)


def write_config(hf: dict[str, Any], dtype: torch.dtype | None, directory: Path) -> None:
    """config.json of a model whose weights are stored in ``dtype``."""
    key = "torch_dtype" if "torch_dtype" in hf else "dtype"  # transformers < 5 writes the first
    _write_json(directory / "config.json", hf | {key: str(dtype).removeprefix("torch.")})


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
