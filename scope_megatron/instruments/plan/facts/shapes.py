"""A model's sizes by directory, file, Hub name or built-in name; its parameters, whole and cut."""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from pathlib import Path

from scope_megatron.config.errors import ConfigError
from scope_megatron.config.modeldir import ModelDirError, read_shape
from scope_megatron.family import ModelShape, ShapeError
from scope_megatron.hub import HubError, fetch, hub_name
from scope_megatron.instruments.plan.facts.known import KNOWN, known_name, source_of

VOCAB_ROUND = 128  # rows of the embedding per tensor rank are a multiple of it


@dataclass(frozen=True)
class NamedShape:
    """A model's sizes, and where they are from."""

    name: str
    shape: ModelShape
    source: str


def find_shape(text: str | Path, setting: str, online: bool = False) -> NamedShape:
    """The sizes of a directory, a config.json, a built-in model, or a model of the hub.

    A path that does not exist and ends in a built-in model's name stands for that model. Only
    ``online`` asks the hub, for config.json alone. Raises ConfigError naming ``setting``.
    """
    path = Path(text).expanduser()
    directory = path.parent if path.is_file() and path.suffix == ".json" else path
    try:
        if path.is_file() and path.name != "config.json" and path.suffix == ".json":
            return NamedShape(str(path), _of_file(path), str(path))
        if directory.is_dir():
            return NamedShape(str(text), read_shape(directory), str(directory / "config.json"))
        if name := known_name(str(text)):
            return NamedShape(name, ModelShape.of(KNOWN[name]), source_of(name))
        if (hub := hub_name(text)) is not None and online:
            folder = fetch(hub, "model", ("config.json",), setting)
            return NamedShape(str(hub), read_shape(folder), f"config.json of {hub}")
    except (ModelDirError, HubError, ShapeError) as error:
        raise ConfigError(f"{setting}: {error}") from None
    raise ConfigError(f"{setting}: {text} {_unknown(str(text), online)}")


def _of_file(path: Path) -> ModelShape:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ModelDirError(f"{path} holds no JSON object; give a model's config.json")
        return ModelShape.of(values)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        raise ModelDirError(f"{path} is not JSON; give a model's config.json") from None
    except ValueError as error:  # an architecture that is not supported, a size that is missing
        raise ModelDirError(f"{path}: {error}") from None


def _unknown(text: str, online: bool) -> str:
    close = difflib.get_close_matches(text, KNOWN, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}?" if close else "give a directory or its config.json"
    if hub_name(text) is not None and not online:
        hint += " (or add --online to ask the hub)"
    return f"is no directory and no built-in model; {hint}"


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters; ``experts`` are those of the experts alone."""

    dense: int = 0
    experts: int = 0

    @property
    def total(self) -> int:
        return self.dense + self.experts

    def __add__(self, other: Parameters) -> Parameters:
        return Parameters(self.dense + other.dense, self.experts + other.experts)

    def times(self, count: int) -> Parameters:
        return Parameters(self.dense * count, self.experts * count)


def query_width(shape: ModelShape) -> int:
    """Width of all queries of a token."""
    return shape.heads * shape.head_dim


def key_width(shape: ModelShape) -> int:
    """Width of all keys of a token; values have the same."""
    return shape.query_groups * shape.head_dim


def padded_vocab(shapes: list[ModelShape], tensor: int) -> int:
    """Rows of the embedding that all models of a run are padded to."""
    multiple = VOCAB_ROUND * tensor
    return -(-max(shape.vocab for shape in shapes) // multiple) * multiple


def layer_parameters(shape: ModelShape, tensor: int = 1, expert: int = 1) -> Parameters:
    """Of one layer on one rank. ``expert`` > 1: whole experts, dealt out; else cut by tensor."""
    family, hidden = shape.family, shape.hidden
    qkv = query_width(shape) + 2 * key_width(shape)
    dense = hidden * (qkv + query_width(shape)) // tensor
    dense += qkv // tensor if family.qkv_bias else 0
    names = family.norms
    around = (names.before_attention, names.after_attention, names.before_mlp, names.after_mlp)
    dense += hidden * sum(name is not None for name in around)
    dense += 2 * shape.head_dim if family.qk_norms else 0
    mlp = 3 * hidden * shape.ffn
    if not shape.experts:
        return Parameters(dense + mlp // tensor)
    share = expert if expert > 1 else tensor
    return Parameters(dense + hidden * shape.experts, mlp * shape.experts // share)


def stage_parameters(
    shape: ModelShape, vocab: int, tensor: int, pipeline: int, expert: int, stage: int
) -> Parameters:
    """Of one pipeline stage on one rank; ``vocab`` is the padded vocabulary."""
    layers = shape.layers // pipeline + (stage < shape.layers % pipeline)
    found = layer_parameters(shape, tensor, expert).times(layers)
    first, last = stage == 0, stage == pipeline - 1
    embedding = vocab * shape.hidden // tensor
    found += Parameters(embedding if first else 0)
    if last:
        own = not shape.tied or not first  # a tied weight on another stage is a copy
        found += Parameters(shape.hidden + (embedding if own else 0))
    return found


def total_parameters(shape: ModelShape) -> int:
    """Of the whole model, without padding."""
    return stage_parameters(shape, shape.vocab, 1, 1, 1, 0).total


def active_parameters(shape: ModelShape) -> int:
    """Those that one token meets: of the experts only those it goes to. Embedding left out."""
    layer = layer_parameters(shape)
    experts = layer.experts * shape.experts_per_token // shape.experts if shape.experts else 0
    return shape.layers * (layer.dense + experts) + shape.vocab * shape.hidden
