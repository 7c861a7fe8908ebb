"""What a pass of a model over tokens takes of a rank: arithmetic and memory traffic.

    matrix products   2 K N for a token and a weight [K, N]; a backward has two more of that size.
                      Each reads and writes its operands, K + N elements a token, and its weight
    attention         half of 4 x width of queries x tokens^2 for a sequence (it is causal), and 2.5
                      times that in the backward, which makes its scores again
    other operators   norms, rotations, activations and residuals read and write about the bytes
                      that a layer keeps for its backward, and twice that in the backward
    loss head         rows of response tokens against the vocabulary, its logits in float32
    gradients         read, added to and written in every microbatch

Recomputation makes again what it does not keep. Tokens are taken to spread evenly over experts.
"""

from __future__ import annotations

from dataclasses import dataclass

from scope_megatron.family import ModelShape
from scope_megatron.instruments.plan.activations import (
    FLOAT,
    Build,
    attention_kept,
    mlp_kept,
    recomputed_layers,
)
from scope_megatron.instruments.plan.facts.figures import Efficiencies, GpuFigures
from scope_megatron.instruments.plan.facts.shapes import key_width, layer_parameters, query_width
from scope_megatron.instruments.plan.layout import RunLayout

BACKWARD = 2.0  # products of a backward beside those of its forward
ATTENTION_BACKWARD = 2.5
# bytes of a logit: made, read for its maximum and its sum; its gradient made, read by two products
_LOGIT, _LOGIT_GRADIENT = 3.0 * FLOAT, 6.0

Matrix = tuple[float, float, float]  # rows for a token, K, N


@dataclass(frozen=True)
class RankWork:
    """One rank's: FLOP of matrix products and of attention, bytes of its memory."""

    products: float = 0.0
    attention: float = 0.0
    moved: float = 0.0

    def __add__(self, other: RankWork) -> RankWork:
        return RankWork(
            self.products + other.products,
            self.attention + other.attention,
            self.moved + other.moved,
        )

    def times(self, count: float) -> RankWork:
        return RankWork(self.products * count, self.attention * count, self.moved * count)

    def seconds(
        self, gpu: GpuFigures, element: int, reached: Efficiencies, share: float
    ) -> dict[str, float]:
        """By part, ``share`` of the ideal."""
        peak, share = arithmetic_rate(gpu, element), share * gpu.programs
        return {
            "products": self.products / (peak * share),
            "attention": self.attention / (peak * reached.attention * share),
            "memory": self.moved / (gpu.bandwidth * reached.memory * share),
        }


@dataclass(frozen=True)
class Passed:
    """The tokens that go through a rank's layers, and how."""

    tokens: float  # of the rank, all microbatches
    squares: float  # sum of the squares of its sequences' tokens
    microbatches: float
    rows: float  # tokens that the loss or a score is made of
    trains: bool = False
    gradient: int = FLOAT  # bytes of a gradient


def arithmetic_rate(gpu: GpuFigures, element: int) -> float:
    """FLOP/s of large matrix products on this GPU."""
    return gpu.matmul * (gpu.bf16 if element < FLOAT else gpu.fp32)


def attention_matrices(shape: ModelShape, layout: RunLayout) -> list[Matrix]:
    """Of a layer on a rank."""
    q, k, t = query_width(shape), key_width(shape), layout.tensor
    return [(1.0, shape.hidden, (q + 2 * k) / t), (1.0, q / t, shape.hidden)]


def mlp_matrices(shape: ModelShape, layout: RunLayout, build: Build) -> list[Matrix]:
    """Of a layer's MLP, or of the experts that a token goes to, on a rank."""
    t, wide = layout.tensor, 2.0 if build.gated else 1.0
    rows, ffn = 1.0, shape.ffn / t
    if shape.experts:
        whole = layout.expert > 1
        rows = shape.experts_per_token / (t if whole else 1.0)
        ffn = shape.ffn / (1.0 if whole else t)
    return [(rows, shape.hidden, wide * ffn), (rows, ffn, shape.hidden)]


def layers_work(
    shape: ModelShape, layout: RunLayout, build: Build, passed: Passed, layers: float
) -> RankWork:
    """Of a stage's layers."""
    again = _again(layout, layers) if passed.trains else (0.0, 0.0, 0.0)
    around = attention_work(shape, layout, build, passed, again[0], again[1])
    inner = mlp_work(shape, layout, build, passed, again[2])
    return (around + inner).times(layers)


def attention_work(
    shape: ModelShape,
    layout: RunLayout,
    build: Build,
    passed: Passed,
    again: float = 0.0,
    core: float = 0.0,
) -> RankWork:
    """Of a layer's attention; ``again``: made once more, ``core`` of attention itself."""
    matrices = attention_matrices(shape, layout)
    held = sum(k * n for _, k, n in matrices)
    kept = attention_kept(shape, layout, build)
    work = _block(matrices, held, kept, build, passed, again)
    scores = 2 * query_width(shape) / layout.tensor * passed.squares
    scores *= 1 + ATTENTION_BACKWARD + core if passed.trains else 1.0
    return work + RankWork(attention=scores)


def mlp_work(
    shape: ModelShape, layout: RunLayout, build: Build, passed: Passed, again: float = 0.0
) -> RankWork:
    """Of a layer's MLP or experts."""
    matrices = mlp_matrices(shape, layout, build)
    held: float = layer_parameters(shape, layout.tensor, layout.expert).experts
    held = held or sum(k * n for _, k, n in matrices)
    return _block(matrices, held, mlp_kept(shape, layout, build), build, passed, again)


def _block(
    matrices: list[Matrix], held: float, kept: float, build: Build, passed: Passed, again: float
) -> RankWork:
    """``held`` parameters, of which ``matrices`` are met by a token; ``kept`` bytes a token."""
    e = build.element
    times = again + (1 + BACKWARD if passed.trains else 1.0)
    products = sum(rows * 2 * k * n for rows, k, n in matrices)
    moved = sum(rows * (k + n) * e for rows, k, n in matrices) + kept
    weights = held * e * times + (held * 2 * passed.gradient if passed.trains else 0.0)
    return RankWork(
        products=times * products * passed.tokens,
        moved=times * moved * passed.tokens + weights * passed.microbatches,
    )


def _again(layout: RunLayout, layers: float) -> tuple[float, float, float]:
    """(of attention's products, of attention itself, of the MLP) how much is made again."""
    if layout.recompute == "none":
        return 0.0, 0.0, 0.0
    if layout.recompute == "selective":
        return 0.0, 1.0, 1.0
    share = min(1.0, recomputed_layers(layout, layers) / layers)
    return share, share, share


def head_work(
    hidden: int, columns: float, build: Build, passed: Passed, trains: bool | None = None
) -> RankWork:
    """Of a last stage's output weight, ``columns`` of its vocabulary on a rank."""
    trains = passed.trains if trains is None else trains
    times = 1 + BACKWARD if trains else 1.0
    logit = _LOGIT + (_LOGIT_GRADIENT if trains else 0.0)
    moved = passed.rows * (times * hidden * build.element + columns * logit)
    moved += passed.microbatches * hidden * columns * (times * build.element)
    if trains:
        moved += passed.microbatches * hidden * columns * 2 * passed.gradient
    return RankWork(times * 2 * passed.rows * hidden * columns, 0.0, moved)
