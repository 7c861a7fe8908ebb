"""The record of an architecture: how it differs from Llama, which is every column's default."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

LayerKind = Literal["full_attention", "sliding_attention"]  # as in config.json's `layer_types`
LAYER_KINDS: tuple[LayerKind, ...] = get_args(LayerKind)
ROPE_TYPES = ("default", "linear", "llama3", "yarn")
OFF = (
    "quantization_config",
    "use_sliding_window",
    "use_bidirectional_attention",
    "mlp_bias",
    "attention_bias",
)
FIXED = (("partial_rotary_factor", 1),)  # every dimension of a head is rotated


@dataclass(frozen=True)
class Norms:
    """Names of a layer's norms of hidden states, by their place; None: there is none."""

    before_attention: str = "input_layernorm"
    after_attention: str | None = None  # of attention's output, before the residual is added
    before_mlp: str = "post_attention_layernorm"
    after_mlp: str | None = None


@dataclass(frozen=True)
class Experts:
    """A mixture of experts in the place of every MLP."""

    module: str  # in the layer: its router is MODULE.gate, an expert MODULE.experts.NUMBER
    gate_up: tuple[str, str]  # in an expert
    down: str
    count_key: str  # of config.json: experts per layer
    ffn_key: str = "intermediate_size"  # of config.json: width of an expert
    per_token: int = 2  # experts that a token goes to, where config.json does not say
    normalized: bool = True  # their weights sum to one, where config.json does not say


@dataclass(frozen=True)
class Windows:
    """Layers in which a token sees the last ``sliding_window`` tokens only, itself included."""

    default: int | None = None  # where config.json has no sliding_window; None: no window then
    full_every: int | None = None  # layers n, 2n, .. have none (or those of `layer_types`)
    full_every_keys: tuple[str, ...] = ()  # of config.json, in place of ``full_every``


@dataclass(frozen=True)
class Caps:
    """Scores and logits x become cap tanh(x / cap): the caps where config.json says none."""

    attention: float | None = None  # attn_logit_softcapping
    logits: float | None = None  # final_logit_softcapping


@dataclass(frozen=True)
class Family:
    """One architecture. Names of parameters are those within a layer, without ``.weight``.

    One name for ``qkv`` or ``gate_up`` is a tensor that holds the parts one after the other.
    """

    name: str  # in config.json's `architectures`
    title: str  # for people: docs/models.md

    # parameters, by Hugging Face's names
    norms: Norms = Norms()
    qkv: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    qkv_bias: bool = False
    qk_norms: tuple[str, str] | None = None  # of every head of queries and of keys
    output: str = "self_attn.o_proj"
    gate_up: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    down: str = "mlp.down_proj"
    experts: Experts | None = None  # None: ``gate_up`` and ``down``

    # mathematics
    activation: Literal["silu", "gelu_pytorch_tanh"] = "silu"
    activation_key: str = "hidden_act"  # of config.json: may say ``activation`` and no other
    norm_eps: float = 1e-6  # where config.json does not say
    zero_centered_norms: bool = False  # factors are 1 + weight
    scaled_embeddings: bool = False  # times sqrt(hidden size)
    scale_key: str | None = None  # of config.json: d of attention's 1 / sqrt(d); None: head size
    windows: Windows | None = None
    caps: Caps | None = None
    rope_theta: float = 10000.0  # where config.json does not say
    window_rope_theta: float | None = None  # of layers with a window; None: as the others
    tied: bool = False  # output layer and embedding, where config.json does not say

    # config.json's settings that must be there, off, or at the one value that is implemented
    required: tuple[str, ...] = ()  # positive whole numbers
    off: tuple[str, ...] = OFF
    fixed: tuple[tuple[str, object], ...] = FIXED
    rope_types: tuple[str, ...] = ROPE_TYPES

    # the rollout engine
    engine_output_layer: bool = True  # vLLM's model has one also where it is tied

    @property
    def ffn_key(self) -> str:
        """config.json's name for the width of an MLP, or of an expert."""
        return self.experts.ffn_key if self.experts else "intermediate_size"
