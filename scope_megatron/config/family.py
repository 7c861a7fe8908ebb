"""What a config.json leaves to its family's defaults, and which layers differ from others.

Every function takes the parsed ``config.json``. No torch here: the settings' checks use it too.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

LayerKind = Literal["full_attention", "sliding_attention"]
LAYER_KINDS: tuple[LayerKind, ...] = get_args(LayerKind)
GEMMA = ("Gemma2ForCausalLM", "Gemma3ForCausalLM")
_GEMMA2_CAPS = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}


def architecture(hf: dict[str, Any]) -> str:
    return (hf.get("architectures") or ["none"])[0]


def is_gemma(hf: dict[str, Any]) -> bool:
    return architecture(hf) in GEMMA


def is_tied(hf: dict[str, Any]) -> bool:
    """Whether the output layer is the embedding. Gemma's published files do not say it."""
    return bool(hf.get("tie_word_embeddings", is_gemma(hf)))


def is_mixture(hf: dict[str, Any]) -> bool:
    """Whether the MLPs are mixtures of experts."""
    return bool(hf.get("num_experts") or hf.get("num_local_experts"))


def softcap(hf: dict[str, Any], name: str) -> float | None:
    """``cap`` of x -> cap tanh(x / cap) under this name of Gemma's config.json; None: no cap."""
    if not is_gemma(hf):
        return None
    defaults = _GEMMA2_CAPS if architecture(hf) == "Gemma2ForCausalLM" else {}
    return hf.get(name, defaults.get(name))


def window(hf: dict[str, Any]) -> int | None:
    """How many of the last tokens, itself included, a token sees in layers with a window."""
    family = architecture(hf)
    if family == "MistralForCausalLM":
        return hf.get("sliding_window", 4096)
    if family == "MixtralForCausalLM" or is_gemma(hf):
        return hf.get("sliding_window")
    return None


def layer_kinds(hf: dict[str, Any]) -> list[LayerKind]:
    """Which layers have the window: all of Mistral's, Gemma's except every n-th."""
    layers = range(1, hf["num_hidden_layers"] + 1)
    if not is_gemma(hf):
        return ["full_attention" if window(hf) is None else "sliding_attention" for _ in layers]
    if hf.get("layer_types"):
        return list(hf["layer_types"])
    pattern = 2
    if architecture(hf) == "Gemma3ForCausalLM":
        pattern = hf.get("sliding_window_pattern") or hf.get("_sliding_window_pattern") or 6
    return ["sliding_attention" if layer % pattern else "full_attention" for layer in layers]


def windows(hf: dict[str, Any]) -> list[int | None]:
    """The window of every layer, None where a token sees all before it."""
    return [window(hf) if kind == "sliding_attention" else None for kind in layer_kinds(hf)]
