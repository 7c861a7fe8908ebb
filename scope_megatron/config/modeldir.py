"""A Hugging Face model directory, read as JSON and safetensors headers only: no torch.

Everything here raises ModelDirError with what is wrong and the fix; the caller adds the key.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

from scope_megatron.config.errors import shown
from scope_megatron.family import FAMILIES, Family, ModelShape, ShapeError
from scope_megatron.family.shape import caps

CPU_HEAD_DIMS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256)  # vLLM's CPU attention
WEIGHT_DTYPES = ("F64", "F32", "F16", "BF16")
LONGEST_HEADER = 100_000_000  # bytes; the format's own limit
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DOWNLOAD = "give a directory with a Hugging Face model's files"


class ModelDirError(ValueError):
    """`<what is wrong>; <what to do>`."""


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelDirError(f"{path} cannot be read ({error.strerror}); {DOWNLOAD}") from None
    except ValueError:
        raise ModelDirError(f"{path} is not JSON; copy the file again") from None
    if not isinstance(values, dict):
        raise ModelDirError(f"{path} holds no JSON object; copy the file again")
    return values


def require_directory(path: Path) -> None:
    """The directory exists."""
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise ModelDirError(f"{path} {what}; {DOWNLOAD}")


def read_shape(directory: Path) -> ModelShape:
    """config.json, refused where the model is one that would silently be built differently."""
    path = directory / "config.json"
    hf = _read_json(path)
    architectures = hf.get("architectures")
    architecture = architectures[0] if isinstance(architectures, list) and architectures else None
    if architecture not in list(FAMILIES):
        known = ", ".join(FAMILIES)
        raise ModelDirError(f"{path} has architecture {shown(architecture)}; use one of {known}")
    _refuse_variants(path, hf, FAMILIES[architecture])
    try:
        return ModelShape.of(hf)
    except ShapeError as error:
        raise ModelDirError(f"{path} {error}") from None


def _refuse_variants(path: Path, hf: dict[str, Any], family: Family) -> None:
    """Settings of config.json that change the mathematics and are not implemented."""
    settings = dict(hf)
    for rope in _ropes(path, hf):
        _refuse_rope(path, rope, family.rope_types)
        settings |= rope
    wrong = [key for key in family.off if settings.get(key)]
    for key, only in (*family.fixed, (family.activation_key, family.activation)):
        if settings.get(key) not in (None, only):
            wrong.append(key)
    for key in wrong:
        raise ModelDirError(
            f"{path} has {key} {shown(settings[key])}, not supported; use a model without it"
        )
    for key, cap in caps(hf).items():
        if cap is not None and not (isinstance(cap, int | float) and cap > 0):
            raise ModelDirError(f"{path} has {key} {shown(cap)}; set it to null or above 0")


def _ropes(path: Path, hf: dict[str, Any]) -> list[dict[str, Any]]:
    """The rope settings in config.json: one, or one per kind of layer."""
    rope: dict[str, Any] = {}
    for name in ("rope_scaling", "rope_parameters"):  # older and newer style
        value = hf.get(name) or {}
        if not isinstance(value, dict):
            raise ModelDirError(f"{path} has no mapping at {name}; copy the file again")
        rope |= value
    kinds = [value for value in rope.values() if isinstance(value, dict)]
    return kinds or [rope]


def _refuse_rope(path: Path, rope: dict[str, Any], known: tuple[str, ...]) -> None:
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type not in known:
        raise ModelDirError(
            f"{path} has rope_type {shown(rope_type)}; use a model with one of {', '.join(known)}"
        )
    for name in ("factor", "original_max_position_embeddings"):
        if rope_type == "yarn" and not rope.get(name):
            raise ModelDirError(f"{path} has rope_type 'yarn' without {name}; correct config.json")


def check_weights(directory: Path, tied: bool | None) -> None:
    """Every safetensors file is whole, unquantized, and holds the tensors its index names."""
    names: set[str] = set()
    for path, expected in _shards(directory).items():
        held = _tensor_names(path)
        if missing := sorted(expected - held):
            raise ModelDirError(
                f"{path} lacks tensor {missing[0]} that {INDEX} names; copy the model again"
            )
        names |= held
    if tied is False and "lm_head.weight" not in names:
        raise ModelDirError(
            f"{directory} has no lm_head.weight although config.json says "
            "tie_word_embeddings false; correct config.json or copy the weights again"
        )


def count_parameters(directory: Path) -> int:
    """Numbers in all safetensors files, as their whole headers say."""
    total = 0
    for path in _shards(directory):
        _tensor_names(path)
        with path.open("rb") as file:
            header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        shapes = (entry["shape"] for name, entry in header.items() if name != "__metadata__")
        total += sum(math.prod(shape) for shape in shapes)
    return total


def _shards(directory: Path) -> dict[Path, set[str]]:
    """Each safetensors file, with the tensors the index (if any) expects in it."""
    if not (directory / INDEX).is_file():
        if not (directory / SINGLE).is_file():
            raise ModelDirError(f"{directory} has neither {SINGLE} nor {INDEX}; {DOWNLOAD}")
        return {directory / SINGLE: set()}
    shards: dict[Path, set[str]] = {}
    weight_map = _read_json(directory / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelDirError(f"{directory / INDEX} has no weight_map; copy the file again")
    for name, file in weight_map.items():
        shards.setdefault(directory / str(file), set()).add(name)
    for path in sorted(shards):
        if not path.is_file():
            raise ModelDirError(f"{path} is missing although {INDEX} names it; copy the shard")
    return shards


def _tensor_names(path: Path) -> set[str]:
    """Names in a safetensors header, after checking the header against the file's size."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        raw = file.read(length) if 8 + length <= size and length <= LONGEST_HEADER else b""
    try:
        header = json.loads(raw)
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        end = max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
        dtypes = {entry["dtype"] for entry in tensors.values()}
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise ModelDirError(
            f"{path} has no whole safetensors header; copy the file again"
        ) from None
    if size != 8 + length + end:
        raise ModelDirError(
            f"{path} has {size} bytes but its header describes {8 + length + end}; "
            "copy the file again"
        )
    if other := sorted(dtypes.difference(WEIGHT_DTYPES)):
        raise ModelDirError(
            f"{path} holds {other[0]} tensors; use weights in {', '.join(WEIGHT_DTYPES)}"
        )
    return set(tensors)


def tokenizer_file(path: Path) -> Path:
    """tokenizer.json or tokenizer.model of a directory, or the .model file itself."""
    if path.is_file() and path.suffix == ".model":
        return path
    for name in ("tokenizer.json", "tokenizer.model"):
        if (path / name).is_file():
            return path / name
    raise ModelDirError(f"{path} has no tokenizer.json and no tokenizer.model; copy one there")


def token_map(path: Path) -> dict[int, str]:
    """id -> token of a tokenizer.json, added tokens included."""
    values = _read_json(path)
    try:
        vocab = values["model"]["vocab"]
        if isinstance(vocab, dict):  # BPE, WordPiece, WordLevel
            tokens = {int(index): token for token, index in vocab.items()}
        else:  # Unigram: [[token, score], ...]
            tokens = {index: entry[0] for index, entry in enumerate(vocab)}
        for added in values.get("added_tokens") or []:
            tokens[int(added["id"])] = added["content"]
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        raise ModelDirError(f"{path} holds no vocabulary; copy the file again") from None
    return tokens


def first_difference(one: dict[int, str], other: dict[int, str]) -> int | None:
    """The lowest id that does not stand for the same token in both maps."""
    ids = sorted(one.keys() | other.keys())
    return next((index for index in ids if one.get(index) != other.get(index)), None)
