"""A config.json read through its family's record: sizes, windows, caps, ropes.

Old and new spellings, and what published files leave out, are dealt with here and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from scope_megatron.family.record import LAYER_KINDS, Family, LayerKind
from scope_megatron.family.table import FAMILIES

Rope = dict[str, Any]  # rope_type, rope_theta, and what the type needs


class ShapeError(ValueError):
    """A config.json `<has what is wrong>; <what to do>`: the caller puts the file before it."""


@dataclass(frozen=True)
class ModelShape:
    """The sizes in a config.json that decide how a model is built, cut and served."""

    family: Family
    layers: int
    hidden: int
    ffn: int  # of an MLP, or of one expert
    heads: int
    query_groups: int  # key and value heads
    head_dim: int
    vocab: int  # rows of the embedding; may be padded beyond the tokenizer
    max_positions: int
    tied: bool  # the output layer is the embedding
    norm_eps: float = 1e-6
    experts: int = 0  # per layer; 0: a dense model
    experts_per_token: int = 0
    experts_normalized: bool = True  # the weights of a token's experts sum to one
    windows: tuple[int | None, ...] = ()  # per layer; None: a token sees all before it
    attention_cap: float | None = None  # scores are squeezed by a tanh
    logits_cap: float | None = None
    softmax_scale: float | None = None  # None: 1 / sqrt(head_dim)
    ropes: tuple[Rope, ...] = ()  # of all layers; or of those without a window, of those with one

    @classmethod
    def of(cls, hf: dict[str, Any]) -> ModelShape:
        """Raises ValueError for an architecture without a record, ShapeError without a size."""
        family = family_of(hf)
        for key in family.required:
            _size(hf, key)
        heads, hidden = _size(hf, "num_attention_heads"), _size(hf, "hidden_size")
        if not hf.get("head_dim") and hidden % heads:
            raise ShapeError(
                f"has hidden_size {hidden}, not a multiple of num_attention_heads {heads}; "
                "correct config.json"
            )
        return cls(
            family=family,
            layers=_size(hf, "num_hidden_layers"),
            hidden=hidden,
            ffn=_size(hf, family.ffn_key),
            heads=heads,
            query_groups=_size(hf, "num_key_value_heads", heads),
            head_dim=_size(hf, "head_dim", hidden // heads),
            vocab=_size(hf, "vocab_size"),
            max_positions=_size(hf, "max_position_embeddings"),
            tied=is_tied(hf),
            norm_eps=float(hf.get("rms_norm_eps") or family.norm_eps),
            **_experts(hf, family),
            windows=_windows(hf, family),
            attention_cap=caps(hf)["attn_logit_softcapping"],
            logits_cap=caps(hf)["final_logit_softcapping"],
            softmax_scale=_size(hf, family.scale_key) ** -0.5 if family.scale_key else None,
            ropes=_ropes(hf, family),
        )

    @property
    def architecture(self) -> str:
        return self.family.name

    def divided(self) -> dict[str, int]:
        """Sizes that parallelism divides, under config.json's names."""
        return {
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.query_groups,
            self.family.ffn_key: self.ffn,
            "num_hidden_layers": self.layers,
        }


def family_of(hf: dict[str, Any]) -> Family:
    """The record of a config.json's architecture; ValueError if there is none."""
    name = (hf.get("architectures") or ["none"])[0]
    if name not in FAMILIES:
        raise ValueError(
            f"config.json: architecture {name!r} is not supported; supported: {', '.join(FAMILIES)}"
        )
    return FAMILIES[name]


def is_tied(hf: dict[str, Any]) -> bool:
    """Whether the output layer is the embedding. Gemma's published files do not say it."""
    return bool(hf.get("tie_word_embeddings", family_of(hf).tied))


def caps(hf: dict[str, Any]) -> dict[str, float | None]:
    """The caps under config.json's names; None: no cap."""
    defaults = family_of(hf).caps
    if defaults is None:
        return {"attn_logit_softcapping": None, "final_logit_softcapping": None}
    return {
        "attn_logit_softcapping": hf.get("attn_logit_softcapping", defaults.attention),
        "final_logit_softcapping": hf.get("final_logit_softcapping", defaults.logits),
    }


def _size(hf: dict[str, Any], name: str, default: Any = None) -> int:
    value = hf.get(name)
    if value is None:
        value = default
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ShapeError(f"has no positive {name}; copy the file again")
    return value


def _experts(hf: dict[str, Any], family: Family) -> dict[str, Any]:
    experts = family.experts
    if experts is None:
        return {}
    return {
        # transformers 5 writes the second name for all
        "experts": _size(hf, experts.count_key, hf.get("num_local_experts")),
        "experts_per_token": _size(hf, "num_experts_per_tok", experts.per_token),
        "experts_normalized": bool(hf.get("norm_topk_prob", experts.normalized)),
    }


def _windows(hf: dict[str, Any], family: Family) -> tuple[int | None, ...]:
    layers = _size(hf, "num_hidden_layers")
    if family.windows is None or hf.get("sliding_window", family.windows.default) is None:
        return (None,) * layers
    window = _size(hf, "sliding_window", family.windows.default)
    kinds = _layer_kinds(hf, family, layers)
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _layer_kinds(hf: dict[str, Any], family: Family, layers: int) -> list[LayerKind]:
    assert family.windows is not None
    every = family.windows.full_every
    if every is None:
        return ["sliding_attention"] * layers
    kinds = hf.get("layer_types")
    if kinds is not None:
        return _checked_kinds(kinds, layers)
    every = next((hf[key] for key in family.windows.full_every_keys if hf.get(key)), every)
    numbers = range(1, layers + 1)
    return ["sliding_attention" if layer % every else "full_attention" for layer in numbers]


def _checked_kinds(kinds: Any, layers: int) -> list[LayerKind]:
    if not isinstance(kinds, list) or [kind in LAYER_KINDS for kind in kinds] != [True] * layers:
        raise ShapeError(
            f"has layer_types that do not say {' or '.join(LAYER_KINDS)} for each of "
            f"{layers} layers; correct config.json"
        )
    return kinds


def _ropes(hf: dict[str, Any], family: Family) -> tuple[Rope, ...]:
    kinds = LAYER_KINDS if family.window_rope_theta is not None else LAYER_KINDS[:1]
    return tuple(_rope(hf, family, kind) for kind in kinds)


def _rope(hf: dict[str, Any], family: Family, kind: LayerKind) -> Rope:
    """Rope parameters of both styles: ``rope_parameters`` (transformers 5) or the older keys."""
    parameters = dict(hf.get("rope_parameters") or {})
    theta = hf.get("rope_theta", family.rope_theta)
    if family.window_rope_theta is not None:
        if kind == "sliding_attention" and kind not in parameters:
            theta = hf.get("rope_local_base_freq", family.window_rope_theta)
            return {"rope_type": "default", "rope_theta": theta}
        parameters = dict(parameters.get(kind) or {"rope_theta": theta})
    settings = dict(hf.get("rope_scaling") or {}) | parameters
    settings.setdefault("rope_theta", theta)
    settings.setdefault("rope_type", settings.pop("type", "default"))
    return settings
