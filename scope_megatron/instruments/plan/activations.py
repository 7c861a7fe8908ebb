"""Bytes that a layer keeps from its forward pass to its backward, and what it needs meanwhile.

Read from what autograd saves in the layers of ``model/build.py`` (``benchmarks/bench_plan.py``
compares the result with what real updates hold). With h the hidden size, q and k the widths of all
queries and of all keys, f an MLP's, a layer keeps per token, in elements of the parameters' type:

    norms               2 h     (4 h where a norm is no single kernel, then in float32), cut by
                                sequence parallelism
    inputs of qkv, fc1  2 h     cut by sequence parallelism: gathered again in the backward
    attention           q + 2 k as qkv gave it, q + k rotated, q of the output (2 q where sequences
                        are attended to one by one and their outputs joined), cut by tensor
    norms of q and k    q       (2 q + k where a norm is no single kernel), cut by tensor
    MLP                 3 f     (5 f where SwiGLU is no single kernel), cut by tensor
    experts             h + 4 f (h + 6 f) for each expert that a token goes to
    context parallelism 2 k of every token that a rank's tokens see, of all ranks, for its own
"""

from __future__ import annotations

from dataclasses import dataclass

from scope_megatron.family import ModelShape
from scope_megatron.instruments.plan.facts.shapes import key_width, query_width
from scope_megatron.instruments.plan.layout import RunLayout

FLOAT = 4  # bytes of float32


@dataclass(frozen=True)
class Build:
    """What of the installed software decides memory."""

    element: int = 2  # bytes of the parameters' type
    fused_norms: bool = True  # a norm keeps its input alone
    fused_activation: bool = True
    whole_attention: bool = True  # a pack in one launch
    gated: bool = True  # SwiGLU; else two matrices and a GELU (Megatron's GPT)
    rotary: bool = True
    dropout: bool = False  # masks of a byte, of both residual branches
    head_chunk: int = 1024  # tokens whose logits exist at once; 0: all logits of a microbatch


CUDA = Build()
CPU = Build(4, False, False, False, head_chunk=256)


def build_for(gpu: bool, half: bool, shape: ModelShape) -> Build:
    """The build of a run. Gemma's MLP and norms are not fused."""
    if not gpu:
        return Build(2 if half else 4, False, False, False, head_chunk=256)
    plain = shape.family.activation == "silu"
    return Build(
        element=2 if half else 4,
        fused_norms=not shape.family.zero_centered_norms,
        fused_activation=plain,
        whole_attention=half and shape.attention_cap is None,
        head_chunk=0 if shape.logits_cap else 1024,
    )


def attention_kept(shape: ModelShape, layout: RunLayout, build: Build) -> float:
    """Bytes per token of the rank's part of a sequence: attention and the norm before it."""
    hidden, tensor, e = shape.hidden, layout.tensor, build.element
    cut = tensor if layout.sequence else 1
    q, k = query_width(shape) / tensor, key_width(shape) / tensor
    wide = hidden / cut
    inner = (q + 2 * k) + (q + k if build.rotary else 0.0)
    inner += q if build.whole_attention else 2 * q
    if layout.context > 1:  # in the place of a rank's own rotated keys
        inner += gathered(shape, layout, build) / e - k
    norms = norm_kept(hidden / cut, build)
    if shape.family.qk_norms:
        # in float32 what the first norm gave is what the second reads
        inner += q if build.fused_norms else 0.0
        twice = 2 * q + k if e == FLOAT else 2 * (q + k)
        norms += 0.0 if build.fused_norms else FLOAT * twice
    if shape.family.norms.after_attention:
        norms += norm_kept(hidden, build)
    small = FLOAT * (1 / cut + shape.heads / tensor)
    if shape.family.qk_norms:
        small += FLOAT * (shape.heads + shape.query_groups) / tensor
    return e * (wide + inner) + norms + small + (hidden if build.dropout else 0)


def norm_kept(width: float, build: Build) -> float:
    """Bytes per token that a norm keeps: its input; in single operators, which compute in float32,
    that and the normalised one."""
    return width * build.element if build.fused_norms else 2 * width * FLOAT


def gathered(shape: ModelShape, layout: RunLayout, build: Build) -> float:
    """Bytes per token of a rank's part: keys and values that context parallelism gathers. The last
    of its two pieces sees all before it, in one launch the first one's once more."""
    if layout.context == 1:
        return 0.0
    seen = layout.context + (0.5 if build.whole_attention else 0.0)
    return 2 * key_width(shape) / layout.tensor * seen * build.element


def mlp_kept(shape: ModelShape, layout: RunLayout, build: Build) -> float:
    """Bytes per token of the MLP or of the experts, the norm before it included."""
    hidden = shape.hidden
    cut = layout.tensor if layout.sequence else 1
    norm = norm_kept(hidden / cut, build)
    if shape.family.norms.after_mlp:
        norm += norm_kept(hidden, build)
    kept = norm + FLOAT / cut + (hidden if build.dropout else 0)
    return kept + _inside_mlp(shape, layout, build)


def _inside_mlp(shape: ModelShape, layout: RunLayout, build: Build) -> float:
    """What recomputing the MLP saves; its input, which is kept then, not included."""
    hidden, e, tensor = shape.hidden, build.element, layout.tensor
    cut = tensor if layout.sequence else 1
    if not shape.experts:
        wide = 2.0 if not build.gated else 3.0 if build.fused_activation else 5.0
        return e * (hidden / cut + wide * shape.ffn / tensor)
    router = max(FLOAT, e) * hidden / cut  # its arithmetic is float32
    whole = layout.expert > 1
    ffn = shape.ffn / (1 if whole else tensor)
    routed = shape.experts_per_token / (cut if whole else 1)
    wide = 4.0 if build.fused_activation else 6.0
    small = shape.experts_per_token * 36 + shape.experts * 5
    return router + routed * e * (hidden + wide * ffn) + small / cut


def layer_kept(shape: ModelShape, layout: RunLayout, build: Build) -> float:
    """Bytes per token of a layer of which nothing is computed again."""
    return attention_kept(shape, layout, build) + mlp_kept(shape, layout, build)


def stage_kept(shape: ModelShape, layout: RunLayout, build: Build, layers: float) -> float:
    """Bytes per token of a stage's layers, for one microbatch."""
    whole = layer_kept(shape, layout, build)
    if layout.recompute == "none":
        return layers * whole
    cut = layout.tensor if layout.sequence else 1
    inputs = build.element * shape.hidden / cut
    if layout.recompute == "selective":
        saved = _inside_mlp(shape, layout, build) - inputs
        saved += FLOAT * shape.heads / layout.tensor
        if not build.whole_attention:
            saved += build.element * query_width(shape) / layout.tensor
        if layout.context > 1:
            saved += gathered(shape, layout, build)
            saved -= key_width(shape) / layout.tensor * build.element
        return layers * (whole - saved)
    again = min(layers, recomputed_layers(layout, layers))
    return again * inputs + (layers - again) * whole


def recomputed_layers(layout: RunLayout, layers: float) -> float:
    """Of a stage's ``layers``, those that recompute full makes again; each chunk counts its own."""
    some = layout.recompute_layers
    return layers if some is None else some * layout.virtual


def working(shape: ModelShape, layout: RunLayout, build: Build, tokens: float) -> float:
    """Bytes that the backward of one layer needs beyond what is kept: gradients of the MLP's inner
    tensors and of a weight, and the MLP where selective recomputation makes it again."""
    tensor, e = layout.tensor, build.element
    cut = tensor if layout.sequence else 1
    if shape.experts:
        whole = layout.expert > 1
        ffn = shape.ffn / (1 if whole else tensor)
        routed = shape.experts_per_token / (cut if whole else 1)
        selective = layout.recompute == "selective"  # gradients go as they come
        inner = routed * ((2 * shape.hidden + ffn) * (1 if selective else 2))
        # gradients of the experts' first matrices wait until all are there
        weights = 2 * shape.hidden * ffn * e
    else:
        wide = 3.0 if build.fused_activation and build.gated else 2.0
        inner = shape.hidden + wide * shape.ffn / tensor
        weights = shape.hidden * shape.ffn / tensor * e
    if layout.sequence and tensor > 1:
        inner += shape.hidden  # an input gathered again
    needed = tokens * e * inner + weights
    if layout.recompute == "selective":
        needed += tokens * _inside_mlp(shape, layout, build)
    return needed


def forward_only(shape: ModelShape, layout: RunLayout, build: Build, tokens: float) -> float:
    """Bytes of a forward pass that is not differentiated, in its widest moment: inside an MLP, with
    the layer's input, the norms' and attention's outputs."""
    tensor, e = layout.tensor, build.element
    cut = tensor if layout.sequence else 1
    routed = shape.experts_per_token or 1
    whole = shape.experts and layout.expert > 1
    ffn = shape.ffn / (1 if whole else tensor)
    wide = 3.0 if build.fused_activation else 5.0
    inner = wide * ffn * routed + 5 * shape.hidden / cut + 2 * shape.head_dim
    if shape.experts:
        inner += 2 * routed * shape.hidden
    return tokens * e * inner
