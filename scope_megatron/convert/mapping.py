"""Which Hugging Face tensors make up which Megatron parameter: one table, read in both directions.

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
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from scope_megatron.config.family import is_tied

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


@dataclass(frozen=True)
class Sizes:
    """The dimensions of a model that decide its layouts."""

    hidden: int
    ffn: int
    heads: int
    groups: int  # key and value heads
    head: int  # dimension of one head
    vocab: int  # without padding
    experts: int = 0  # 0: a dense model
    expert_ffn: int = 0

    @classmethod
    def of(cls, hf: dict[str, Any]) -> Sizes:
        heads = hf["num_attention_heads"]
        return cls(
            hidden=hf["hidden_size"],
            ffn=hf["intermediate_size"],
            heads=heads,
            groups=hf.get("num_key_value_heads") or heads,
            head=hf.get("head_dim") or hf["hidden_size"] // heads,
            vocab=hf["vocab_size"],
            experts=hf.get("num_experts") or hf.get("num_local_experts") or 0,
            expert_ffn=hf.get("moe_intermediate_size") or hf["intermediate_size"],
        )


class Operation(Protocol):
    """How Hugging Face tensors become one Megatron parameter, and back."""

    cut: ClassVar[int | None]

    def hf_shapes(self, sizes: Sizes) -> tuple[Shape, ...]:
        """Full shapes of the Hugging Face tensors."""

    def to_megatron(
        self, sources: Sequence[Sliceable], sizes: Sizes, rank: int, shape: Shape
    ) -> Tensor:
        """The shard of ``shape`` of tensor rank ``rank``, reading only what it needs."""

    def to_hf(self, shards: Tensor, sizes: Sizes) -> tuple[Tensor, ...]:
        """``shards`` [tp, *shard shape] of all tensor ranks -> the full Hugging Face tensors."""


@dataclass(frozen=True)
class Replicated:
    """A norm's weight, or a router's: the same on both sides and on every tensor rank."""

    dims: tuple[str, ...]  # attributes of Sizes
    cut: ClassVar[int | None] = None

    def hf_shapes(self, sizes: Sizes) -> tuple[Shape, ...]:
        return (tuple(getattr(sizes, name) for name in self.dims),)

    def to_megatron(
        self, sources: Sequence[Sliceable], sizes: Sizes, rank: int, shape: Shape
    ) -> Tensor:
        return sources[0][:]

    def to_hf(self, shards: Tensor, sizes: Sizes) -> tuple[Tensor, ...]:
        return (shards[0],)


@dataclass(frozen=True)
class RowParallel:
    """The output projections: every tensor rank has a slice of the inputs."""

    inputs: str  # "heads" (all query heads side by side), or an attribute of Sizes
    cut: ClassVar[int | None] = 1

    def hf_shapes(self, sizes: Sizes) -> tuple[Shape, ...]:
        heads = self.inputs == "heads"
        width = sizes.heads * sizes.head if heads else getattr(sizes, self.inputs)
        return ((sizes.hidden, width),)

    def to_megatron(
        self, sources: Sequence[Sliceable], sizes: Sizes, rank: int, shape: Shape
    ) -> Tensor:
        return sources[0][:, rank * shape[1] : (rank + 1) * shape[1]]

    def to_hf(self, shards: Tensor, sizes: Sizes) -> tuple[Tensor, ...]:
        return (shards.transpose(0, 1).reshape(shards.size(1), -1),)


@dataclass(frozen=True)
class Vocabulary:
    """Embedding and output layer: rows of the vocabulary, padded with zeros in Megatron only."""

    cut: ClassVar[int | None] = 0

    def hf_shapes(self, sizes: Sizes) -> tuple[Shape, ...]:
        return ((sizes.vocab, sizes.hidden),)

    def to_megatron(
        self, sources: Sequence[Sliceable], sizes: Sizes, rank: int, shape: Shape
    ) -> Tensor:
        start = min(rank * shape[0], sizes.vocab)
        stop = min(start + shape[0], sizes.vocab)
        if start == stop:
            return torch.zeros(shape)
        rows = sources[0][start:stop]
        if rows.size(0) == shape[0]:
            return rows
        return torch.cat([rows, rows.new_zeros(shape[0] - rows.size(0), shape[1])])

    def to_hf(self, shards: Tensor, sizes: Sizes) -> tuple[Tensor, ...]:
        return (shards.reshape(-1, shards.size(2))[: sizes.vocab],)


@dataclass(frozen=True)
class FusedQKV:
    """Query, key and value projections (or their biases), interleaved by query group."""

    bias: bool = False
    cut: ClassVar[int | None] = 0

    def hf_shapes(self, sizes: Sizes) -> tuple[Shape, ...]:
        tail = () if self.bias else (sizes.hidden,)
        rows = (sizes.heads, sizes.groups, sizes.groups)
        return tuple((count * sizes.head, *tail) for count in rows)

    def to_megatron(
        self, sources: Sequence[Sliceable], sizes: Sizes, rank: int, shape: Shape
    ) -> Tensor:
        # The groups this rank's rows touch: whole ones, unless there are more ranks than groups.
        queries = sizes.heads // sizes.groups
        group_rows = (queries + 2) * sizes.head
        first = rank * shape[0] // group_rows
        last = -(-(rank + 1) * shape[0] // group_rows)
        parts = [
            source[first * per_group * sizes.head : last * per_group * sizes.head].unflatten(
                0, (last - first, per_group * sizes.head)
            )
            for source, per_group in zip(sources, (queries, 1, 1), strict=True)
        ]
        start = rank * shape[0] - first * group_rows
        return torch.cat(parts, dim=1).flatten(0, 1)[start : start + shape[0]]

    def to_hf(self, shards: Tensor, sizes: Sizes) -> tuple[Tensor, ...]:
        queries = sizes.heads // sizes.groups
        tail = shards.shape[2:]
        fused = shards.reshape(sizes.groups, queries + 2, sizes.head, *tail)
        parts = fused[:, :queries], fused[:, queries], fused[:, queries + 1]
        return tuple(part.reshape(-1, *tail) for part in parts)


@dataclass(frozen=True)
class GatedMLP:
    """Gate and up projections, one after the other in every tensor rank's shard."""

    width: str = "ffn"  # attribute of Sizes
    cut: ClassVar[int | None] = 0

    def hf_shapes(self, sizes: Sizes) -> tuple[Shape, ...]:
        return ((getattr(sizes, self.width), sizes.hidden),) * 2

    def to_megatron(
        self, sources: Sequence[Sliceable], sizes: Sizes, rank: int, shape: Shape
    ) -> Tensor:
        rows = shape[0] // 2
        return torch.cat([source[rank * rows : (rank + 1) * rows] for source in sources])

    def to_hf(self, shards: Tensor, sizes: Sizes) -> tuple[Tensor, ...]:
        halves = shards.unflatten(1, (2, -1))
        return tuple(halves[:, half].reshape(-1, shards.size(2)) for half in (0, 1))


@dataclass(frozen=True)
class Rule:
    """One Megatron parameter and the Hugging Face tensors it is made of."""

    megatron: tuple[str, ...]  # one name per layer spec that names it differently
    hf: tuple[str, ...]
    operation: Operation
    duplicate: bool = False  # another parameter has the same content: loaded, never exported


_M, _H = "decoder.layers.{layer}.", "model.layers.{layer}."  # Megatron, Hugging Face
_EMBEDDING = "model.embed_tokens.weight"

_BASE = (
    Rule(("embedding.word_embeddings.weight",), (_EMBEDDING,), Vocabulary()),
    Rule(
        (_M + "input_layernorm.weight", _M + "self_attention.linear_qkv.layer_norm_weight"),
        (_H + "input_layernorm.weight",),
        Replicated(("hidden",)),
    ),
    Rule(
        (_M + "self_attention.linear_qkv.weight",),
        tuple(_H + f"self_attn.{part}_proj.weight" for part in "qkv"),
        FusedQKV(),
    ),
    Rule(
        (_M + "self_attention.linear_proj.weight",),
        (_H + "self_attn.o_proj.weight",),
        RowParallel("heads"),
    ),
    Rule(("decoder.final_layernorm.weight",), ("model.norm.weight",), Replicated(("hidden",))),
)
_ATTENTION = (
    *_BASE,
    Rule(
        (_M + "pre_mlp_layernorm.weight", _M + "mlp.linear_fc1.layer_norm_weight"),
        (_H + "post_attention_layernorm.weight",),
        Replicated(("hidden",)),
    ),
)
_MLP = (
    Rule(
        (_M + "mlp.linear_fc1.weight",),
        (_H + "mlp.gate_proj.weight", _H + "mlp.up_proj.weight"),
        GatedMLP(),
    ),
    Rule((_M + "mlp.linear_fc2.weight",), (_H + "mlp.down_proj.weight",), RowParallel("ffn")),
)
_DENSE = (*_ATTENTION, *_MLP)
_GEMMA = (  # a norm before and behind each block, which their names do not tell apart
    *_BASE,
    *(
        Rule((_M + ours + ".weight",), (_H + theirs + ".weight",), Replicated(("hidden",)))
        for ours, theirs in (
            ("self_attn_bda", "post_attention_layernorm"),
            ("pre_mlp_layernorm", "pre_feedforward_layernorm"),
            ("mlp_bda", "post_feedforward_layernorm"),
        )
    ),
    *_MLP,
)


def _experts(block: str, gate: str, up: str, down: str) -> tuple[Rule, ...]:
    """The router and experts of a layer, under Hugging Face's names for them."""
    ours, theirs = _M + _EXPERT, _H + block + ".experts.{expert}."
    return (
        Rule(
            (_M + "mlp.router.weight",),
            (_H + block + ".gate.weight",),
            Replicated(("experts", "hidden")),
        ),
        Rule(
            (ours + "linear_fc1.weight",),
            (theirs + gate + ".weight", theirs + up + ".weight"),
            GatedMLP("expert_ffn"),
        ),
        Rule(
            (ours + "linear_fc2.weight",), (theirs + down + ".weight",), RowParallel("expert_ffn")
        ),
    )


_QKV_BIAS = Rule(
    (_M + "self_attention.linear_qkv.bias",),
    tuple(_H + f"self_attn.{part}_proj.bias" for part in "qkv"),
    FusedQKV(bias=True),
)
_QK_NORMS = tuple(
    Rule(
        (_M + f"self_attention.{part}_layernorm.weight",),
        (_H + f"self_attn.{part}_norm.weight",),
        Replicated(("head",)),
    )
    for part in "qk"
)
_OUTPUT = Rule(("output_layer.weight",), ("lm_head.weight",), Vocabulary())
# Tied: the last pipeline stage holds a second copy of the embedding.
_TIED_OUTPUT = Rule(("output_layer.weight",), (_EMBEDDING,), Vocabulary(), duplicate=True)

ARCHITECTURES: dict[str, tuple[Rule, ...]] = {
    "LlamaForCausalLM": _DENSE,
    "Qwen2ForCausalLM": (*_DENSE, _QKV_BIAS),
    "Qwen3ForCausalLM": (*_DENSE, *_QK_NORMS),
    "MistralForCausalLM": _DENSE,
    "Qwen3MoeForCausalLM": (
        *_ATTENTION,
        *_QK_NORMS,
        *_experts("mlp", "gate_proj", "up_proj", "down_proj"),
    ),
    "MixtralForCausalLM": (*_ATTENTION, *_experts("block_sparse_moe", "w1", "w3", "w2")),
    "Gemma2ForCausalLM": _GEMMA,
    "Gemma3ForCausalLM": (*_GEMMA, *_QK_NORMS),
}


class Mapping:
    """The table of one model: its architecture, sizes and number of layers."""

    def __init__(self, hf: dict[str, Any]) -> None:
        """Raises ValueError for an architecture without a table."""
        architecture = (hf.get("architectures") or ["none"])[0]
        if architecture not in ARCHITECTURES:
            raise ValueError(
                f"config.json: architecture {architecture!r} is not supported; "
                f"supported: {', '.join(ARCHITECTURES)}"
            )
        self.architecture = architecture
        self.tied = is_tied(hf)
        self.sizes = Sizes.of(hf)
        self.layers: int = hf["num_hidden_layers"]
        self.rules = (*ARCHITECTURES[architecture], _TIED_OUTPUT if self.tied else _OUTPUT)
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
            for template, shape in zip(rule.hf, rule.operation.hf_shapes(self.sizes), strict=True):
                for layer in range(self.layers if "{layer}" in template else 1):
                    for expert in range(self.sizes.experts if "{expert}" in template else 1):
                        shapes[template.format(layer=layer, expert=expert)] = shape
        return shapes
