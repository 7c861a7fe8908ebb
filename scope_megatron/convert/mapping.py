"""Mapping of Hugging Face tensors to Megatron parameters: one table, read in both directions.

A rule names one Megatron parameter (``{layer}`` is counted over the whole model, ``{expert}``
within the layer), the Hugging Face tensors it is made of, and the operation between them. Fused
layouts, along dim 0:

    linear_qkv  per query group: [its query heads; its key head; its value head], biases alike
    linear_fc1  per tensor rank: [rows of gate_proj; the same rows of up_proj]
    embedding   the vocabulary's rows, then zero rows up to the padded vocabulary

``cut`` is the dimension of the Megatron parameter that tensor parallelism divides (0: columns of
the product, 1: rows of the product, None: every rank has all of it).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from scope_megatron.family import Experts, Family, ModelShape, Norms

Shape = tuple[int, ...]

_NUMBERED = re.compile(
    r"^decoder\.layers\.(?P<layer>\d+)\.(?:mlp\.experts\.local_experts\.(?P<expert>\d+)\.)?"
)
_EXPERT = "mlp.experts.local_experts.{expert}."
_EXPERT_NUMBER = re.compile(r"(?<=\.local_experts\.)\d+(?=\.)")


def expert_of(name: str) -> int | None:
    """The number of the expert that a Megatron parameter belongs to."""
    found = _EXPERT_NUMBER.search(name)
    return int(found[0]) if found else None


def is_expert(name: str) -> bool:
    """Whether a Megatron parameter belongs to one expert."""
    return expert_of(name) is not None


def with_expert(name: str, number: int) -> str:
    """The name of the same parameter of another expert."""
    return _EXPERT_NUMBER.sub(str(number), name)


class Sliceable(Protocol):
    """A tensor, or a tensor of a safetensors file of which only the part asked for is read."""

    def __getitem__(self, index: Any) -> Tensor: ...


class Operation(Protocol):
    """Operation from Hugging Face tensors to one Megatron parameter, and back."""

    cut: ClassVar[int | None]

    def hf_shapes(self, sizes: ModelShape) -> tuple[Shape, ...]:
        """Full shapes of the Hugging Face tensors."""

    def to_megatron(
        self, sources: Sequence[Sliceable], sizes: ModelShape, rank: int, shape: Shape
    ) -> Tensor:
        """The shard of ``shape`` of tensor rank ``rank``, reading only what it needs."""

    def to_hf(self, shards: Tensor, sizes: ModelShape) -> tuple[Tensor, ...]:
        """``shards`` [tp, *shard shape] of all tensor ranks -> the full Hugging Face tensors."""


@dataclass(frozen=True)
class Replicated:
    """A norm's weight, or a router's: the same on both sides and on every tensor rank."""

    dims: tuple[str, ...]  # attributes of ModelShape
    cut: ClassVar[int | None] = None

    def hf_shapes(self, sizes: ModelShape) -> tuple[Shape, ...]:
        return (tuple(getattr(sizes, name) for name in self.dims),)

    def to_megatron(
        self, sources: Sequence[Sliceable], sizes: ModelShape, rank: int, shape: Shape
    ) -> Tensor:
        return sources[0][:]

    def to_hf(self, shards: Tensor, sizes: ModelShape) -> tuple[Tensor, ...]:
        return (shards[0],)


@dataclass(frozen=True)
class RowParallel:
    """The output projections: every tensor rank has a slice of the inputs."""

    inputs: str  # "heads" (all query heads side by side), or an attribute of ModelShape
    cut: ClassVar[int | None] = 1

    def hf_shapes(self, sizes: ModelShape) -> tuple[Shape, ...]:
        heads = self.inputs == "heads"
        width = sizes.heads * sizes.head_dim if heads else getattr(sizes, self.inputs)
        return ((sizes.hidden, width),)

    def to_megatron(
        self, sources: Sequence[Sliceable], sizes: ModelShape, rank: int, shape: Shape
    ) -> Tensor:
        return sources[0][:, rank * shape[1] : (rank + 1) * shape[1]]

    def to_hf(self, shards: Tensor, sizes: ModelShape) -> tuple[Tensor, ...]:
        return (shards.transpose(0, 1).reshape(shards.size(1), -1),)


@dataclass(frozen=True)
class Vocabulary:
    """Embedding and output layer: rows of the vocabulary, padded with zeros in Megatron only."""

    cut: ClassVar[int | None] = 0

    def hf_shapes(self, sizes: ModelShape) -> tuple[Shape, ...]:
        return ((sizes.vocab, sizes.hidden),)

    def to_megatron(
        self, sources: Sequence[Sliceable], sizes: ModelShape, rank: int, shape: Shape
    ) -> Tensor:
        start = min(rank * shape[0], sizes.vocab)
        stop = min(start + shape[0], sizes.vocab)
        if start == stop:
            return torch.zeros(shape)
        rows = sources[0][start:stop]
        if rows.size(0) == shape[0]:
            return rows
        return torch.cat([rows, rows.new_zeros(shape[0] - rows.size(0), shape[1])])

    def to_hf(self, shards: Tensor, sizes: ModelShape) -> tuple[Tensor, ...]:
        return (shards.reshape(-1, shards.size(2))[: sizes.vocab],)


@dataclass(frozen=True)
class FusedQKV:
    """Query, key and value projections (or their biases), interleaved by query group."""

    bias: bool = False
    cut: ClassVar[int | None] = 0

    def hf_shapes(self, sizes: ModelShape) -> tuple[Shape, ...]:
        tail = () if self.bias else (sizes.hidden,)
        rows = (sizes.heads, sizes.query_groups, sizes.query_groups)
        return tuple((count * sizes.head_dim, *tail) for count in rows)

    def to_megatron(
        self, sources: Sequence[Sliceable], sizes: ModelShape, rank: int, shape: Shape
    ) -> Tensor:
        # The groups this rank's rows touch: whole ones, unless there are more ranks than groups.
        queries = sizes.heads // sizes.query_groups
        group_rows = (queries + 2) * sizes.head_dim
        first = rank * shape[0] // group_rows
        last = -(-(rank + 1) * shape[0] // group_rows)
        heads = (queries * sizes.head_dim, sizes.head_dim, sizes.head_dim)  # rows per group
        parts = [
            source[first * rows : last * rows].unflatten(0, (last - first, rows))
            for source, rows in zip(sources, heads, strict=True)
        ]
        start = rank * shape[0] - first * group_rows
        return torch.cat(parts, dim=1).flatten(0, 1)[start : start + shape[0]]

    def to_hf(self, shards: Tensor, sizes: ModelShape) -> tuple[Tensor, ...]:
        queries = sizes.heads // sizes.query_groups
        tail = shards.shape[2:]
        fused = shards.reshape(sizes.query_groups, queries + 2, sizes.head_dim, *tail)
        parts = fused[:, :queries], fused[:, queries], fused[:, queries + 1]
        return tuple(part.reshape(-1, *tail) for part in parts)


@dataclass(frozen=True)
class GatedMLP:
    """Gate and up projections, one after the other in every tensor rank's shard."""

    cut: ClassVar[int | None] = 0

    def hf_shapes(self, sizes: ModelShape) -> tuple[Shape, ...]:
        return ((sizes.ffn, sizes.hidden),) * 2

    def to_megatron(
        self, sources: Sequence[Sliceable], sizes: ModelShape, rank: int, shape: Shape
    ) -> Tensor:
        rows = shape[0] // 2
        return torch.cat([source[rank * rows : (rank + 1) * rows] for source in sources])

    def to_hf(self, shards: Tensor, sizes: ModelShape) -> tuple[Tensor, ...]:
        halves = shards.unflatten(1, (2, -1))
        return tuple(halves[:, half].reshape(-1, shards.size(2)) for half in (0, 1))


@dataclass(frozen=True)
class Rule:
    """One Megatron parameter and the Hugging Face tensors it is made of.

    One tensor in the place of the operation's several holds them one after the other (Phi 3).
    """

    megatron: tuple[str, ...]  # one name per layer spec that names it differently
    hf: tuple[str, ...]
    operation: Operation
    duplicate: bool = False  # another parameter has the same content: loaded, never exported

    def hf_shapes(self, sizes: ModelShape) -> tuple[Shape, ...]:
        """Full shapes of the Hugging Face tensors."""
        shapes = self.operation.hf_shapes(sizes)
        if len(self.hf) == len(shapes):
            return shapes
        return ((sum(shape[0] for shape in shapes), *shapes[0][1:]),)

    def to_megatron(
        self, sources: Sequence[Sliceable], sizes: ModelShape, rank: int, shape: Shape
    ) -> Tensor:
        """As the operation's."""
        rows = [shape[0] for shape in self.operation.hf_shapes(sizes)]
        if len(sources) < len(rows):
            ends = accumulate(rows)
            sources = [_Rows(sources[0], end - n, end) for n, end in zip(rows, ends, strict=True)]
        return self.operation.to_megatron(sources, sizes, rank, shape)

    def to_hf(self, shards: Tensor, sizes: ModelShape) -> tuple[Tensor, ...]:
        """As the operation's."""
        tensors = self.operation.to_hf(shards, sizes)
        return tensors if len(self.hf) == len(tensors) else (torch.cat(tensors),)


@dataclass(frozen=True)
class _Rows:
    """Some rows of a tensor, of which again some are asked for."""

    source: Sliceable
    first: int
    end: int

    def __getitem__(self, rows: slice) -> Tensor:
        start, stop, _ = rows.indices(self.end - self.first)
        return self.source[self.first + start : self.first + stop]


_M, _H = "decoder.layers.{layer}.", "model.layers.{layer}."  # Megatron, Hugging Face
_EMBEDDING = "model.embed_tokens.weight"


def rules_of(family: Family, tied: bool) -> tuple[Rule, ...]:
    """The family's table: Megatron's names and layouts beside the record's names."""
    # Tied: the last pipeline stage holds a second copy of the embedding.
    output = _EMBEDDING if tied else "lm_head.weight"
    return (
        Rule(("embedding.word_embeddings.weight",), (_EMBEDDING,), Vocabulary()),
        *_norms(family.norms),
        *_attention(family),
        *(_experts(family.experts) if family.experts else _mlp(family.gate_up, family.down)),
        Rule(("decoder.final_layernorm.weight",), ("model.norm.weight",), Replicated(("hidden",))),
        Rule(("output_layer.weight",), (output,), Vocabulary(), duplicate=tied),
    )


def _norms(norms: Norms) -> Iterator[Rule]:
    linear = ("self_attention.linear_qkv.layer_norm_weight", "mlp.linear_fc1.layer_norm_weight")
    places = (  # Transformer Engine's norms are in the projections behind them
        (("input_layernorm.weight", linear[0]), norms.before_attention),
        (("self_attn_bda.weight",), norms.after_attention),
        (("pre_mlp_layernorm.weight", linear[1]), norms.before_mlp),
        (("mlp_bda.weight",), norms.after_mlp),
    )
    for ours, theirs in places:
        if theirs is not None:
            names = tuple(_M + name for name in ours)
            yield Rule(names, _named((theirs,)), Replicated(("hidden",)))


def _attention(family: Family) -> Iterator[Rule]:
    ours = _M + "self_attention."
    yield Rule((ours + "linear_qkv.weight",), _named(family.qkv), FusedQKV())
    if family.qkv_bias:
        yield Rule((ours + "linear_qkv.bias",), _named(family.qkv, "bias"), FusedQKV(bias=True))
    for part, name in zip("qk", family.qk_norms or (), strict=False):
        norm = Replicated(("head_dim",))
        yield Rule((f"{ours}{part}_layernorm.weight",), _named((name,)), norm)
    yield Rule((ours + "linear_proj.weight",), _named((family.output,)), RowParallel("heads"))


def _mlp(gate_up: tuple[str, ...], down: str, block: str = "mlp.") -> Iterator[Rule]:
    """The two matrices of an MLP, or of an expert, that is called ``block`` in Megatron's layer."""
    yield Rule((_M + block + "linear_fc1.weight",), _named(gate_up), GatedMLP())
    yield Rule((_M + block + "linear_fc2.weight",), _named((down,)), RowParallel("ffn"))


def _experts(experts: Experts) -> Iterator[Rule]:
    router = experts.module + ".gate"
    yield Rule((_M + "mlp.router.weight",), _named((router,)), Replicated(("experts", "hidden")))
    prefix = experts.module + ".experts.{expert}."
    gate_up = tuple(prefix + name for name in experts.gate_up)
    yield from _mlp(gate_up, prefix + experts.down, _EXPERT)


def _named(modules: tuple[str, ...], kind: str = "weight") -> tuple[str, ...]:
    """Hugging Face's names of the parameters of a layer's modules."""
    return tuple(f"{_H}{module}.{kind}" for module in modules)


class Mapping:
    """The table of one model: its architecture, sizes and number of layers."""

    def __init__(self, hf: dict[str, Any]) -> None:
        """Raises ValueError for an architecture without a record."""
        self.sizes = ModelShape.of(hf)
        self.architecture = self.sizes.architecture
        self.tied = self.sizes.tied
        self.layers = self.sizes.layers
        self.rules = rules_of(self.sizes.family, self.tied)
        self._by_name = {name: rule for rule in self.rules for name in rule.megatron}

    def find(self, name: str) -> tuple[Rule, tuple[str, ...]]:
        """The rule of a Megatron parameter (global layer number), and its Hugging Face names."""
        numbered = _NUMBERED.match(name)
        numbers = numbered.groupdict() if numbered else {}
        prefix = (_M + (_EXPERT if numbers["expert"] else "")) if numbered else ""
        rule = self._by_name.get(prefix + name[numbered.end() if numbered else 0 :])
        if rule is None:
            raise ValueError(f"{self.architecture} has no rule for Megatron's parameter {name!r}")
        return rule, tuple(template.format(**numbers) for template in rule.hf)

    def hf_shapes(self) -> dict[str, Shape]:
        """Name and full shape of every tensor of the Hugging Face checkpoint."""
        shapes: dict[str, Shape] = {}
        for rule in self.rules:
            for template, shape in zip(rule.hf, rule.hf_shapes(self.sizes), strict=True):
                for layer in range(self.layers if "{layer}" in template else 1):
                    for expert in range(self.sizes.experts if "{expert}" in template else 1):
                        shapes[template.format(layer=layer, expert=expert)] = shape
        return shapes
