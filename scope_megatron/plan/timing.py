"""Seconds of a step by phase, from arithmetic, bandwidths and the shares of them that are reached.

Arithmetic of a pass over a token: 2 for each parameter it meets, and 4 x layers x width of queries
x (tokens before it) for attention, of which causal attention is half; a backward is twice as much,
recomputation adds what it makes again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache

from scope_megatron.family import ModelShape
from scope_megatron.plan.activations import FLOAT, recomputed_layers
from scope_megatron.plan.decode import Decoding, StepCost, decode_share, spread
from scope_megatron.plan.facts.figures import Efficiencies, GpuFigures
from scope_megatron.plan.facts.shapes import active_parameters, query_width, total_parameters
from scope_megatron.plan.layout import RunLayout
from scope_megatron.plan.memory import (
    Models,
    cache_bytes_per_token,
    engine_bytes,
    parameters_of,
)
from scope_megatron.plan.traffic import Transfer, optimizer_total, transfers
from scope_megatron.plan.workload import Workload

STEP_PHASES = ("rollout", "score", "train", "sync", "other")
SEQUENCES = 512  # of an engine that are followed one by one; more are scaled


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step by phase, and what they are made of."""

    phases: dict[str, float]
    parts: dict[str, float] = field(default_factory=dict)  # "train/arithmetic" and so on
    transfers: tuple[Transfer, ...] = ()
    decoding: Decoding | None = None
    ahead: bool = False  # the next step is sampled while this one trains

    @property
    def total(self) -> float:
        whole, sampling = sum(self.phases.values()), self.phases.get("rollout", 0.0)
        return max(sampling, whole - sampling) if self.ahead else whole


def forward_flops(
    shape: ModelShape, tokens: float, pair_square: float, sequences: float
) -> tuple[float, float]:
    """(of matrix products, of attention) of a forward pass over the sequences."""
    products = 2.0 * active_parameters(shape) * tokens
    attention = 2.0 * shape.layers * query_width(shape) * pair_square * sequences
    return products, attention


def slowed_by_experts(shape: ModelShape, reached: Efficiencies) -> float:
    """How much longer the matrix products of a mixture take than as many in a dense model."""
    if not shape.experts:
        return 1.0
    experts = 3 * shape.hidden * shape.ffn * shape.experts_per_token * shape.layers
    share = experts / active_parameters(shape)
    return 1 - share + share / reached.experts


def step_time(
    models: Models,
    layout: RunLayout,
    work: Workload,
    gpu: GpuFigures,
    reached: Efficiencies,
) -> StepTime:
    """Of one step, the phases one after the other."""
    peak = gpu.reach * (gpu.bf16 if models.build.element < FLOAT else gpu.fp32)
    sent = tuple(transfers(models, layout, work, gpu))
    parts: dict[str, float] = {}
    decoding = None
    if work.samples:
        decoding, prefill = _rollout(models, layout, work, gpu, reached)
        parts["rollout/prompts"], parts["rollout/decoding"] = prefill, decoding.seconds
    parts |= _score(models, layout, work, peak, reached)
    parts |= _train(models, layout, work, gpu, peak, reached)
    for transfer in sent:
        key = f"{transfer.phase}/{transfer.name}"
        parts[key] = parts.get(key, 0.0) + transfer.seconds(gpu, reached)
    streamed = "score/teacher offload"  # a layer's copy runs while another computes
    if streamed in parts:
        parts[streamed] = max(0.0, parts[streamed] - parts.get("score/teacher", 0.0))
    if work.samples:
        shard = total_parameters(models.student) * models.build.element / layout.engine_tensor
        parts["sync/copies"] = 2 * shard / (gpu.bandwidth * reached.memory)
        parts["sync/preparation"] = reached.sync_s
    parts["other/host"] = reached.step_s
    phases = {
        phase: sum(v for name, v in parts.items() if name.startswith(f"{phase}/"))
        for phase in STEP_PHASES
    }
    return StepTime(phases, parts, sent, decoding, ahead=bool(layout.sampling and layout.lag))


def _rollout(
    models: Models, layout: RunLayout, work: Workload, gpu: GpuFigures, reached: Efficiencies
) -> tuple[Decoding, float]:
    shape, e, t = models.student, models.build.element, layout.engine_tensor
    peak = gpu.reach * (gpu.bf16 if e < FLOAT else gpu.fp32)
    slowed = slowed_by_experts(shape, reached)
    engines = max(1, layout.engines)
    share = max(1, math.ceil(work.responses / engines))
    per_token = cache_bytes_per_token(shape, layout, e)
    cache = engine_bytes(models, layout, gpu.memory)["kv cache"] / per_token
    rate = gpu.bandwidth * reached.decode
    hops = 2 * shape.layers * reached.hop_s if t > 1 else 0.0
    weights = _decode_parameters(shape, min(share, layout.max_num_seqs), reached) * e / t
    cost = StepCost(
        fixed=weights / rate + shape.layers * reached.overhead_s + hops,
        each=shape.vocab * FLOAT * 3 / rate,
        token=per_token / rate,
        arithmetic=2.0 * active_parameters(shape) * slowed / t / (peak * reached.prefill),
    )
    followed = _decode(
        work.lengths.values,
        share,
        work.prompt_tokens,
        layout.max_num_seqs,
        max(1, int(cache)),
        cost,
    )
    tokens = work.prompt_tokens * work.prompts  # a group's prompt is read once
    products, attention = forward_flops(shape, tokens, work.prompt_tokens**2, work.prompts)
    prefill = (products * slowed + attention) / (layout.engine_ranks * peak * reached.prefill)
    return followed, prefill


@lru_cache(maxsize=4096)
def _decode(
    values: tuple[float, ...],
    share: int,
    prompt: float,
    slots: int,
    cache: int,
    cost: StepCost,
) -> Decoding:
    """As :func:`decode_share`; of a large share some stand for all, each for as many slots."""
    scale = max(1, math.ceil(share / SEQUENCES))
    if scale == 1:
        return decode_share(spread(values, share), prompt, slots, cache, cost)
    scaled = StepCost(cost.fixed, cost.each * scale, cost.token * scale, cost.arithmetic * scale)
    lengths = spread(values, share // scale)
    return decode_share(lengths, prompt, max(1, slots // scale), cache / scale, scaled)


def _decode_parameters(shape: ModelShape, slots: int, reached: Efficiencies) -> float:
    """Parameters that a decoding step reads: of the experts those that any slot goes to, each as
    slowly as experts are."""
    total = total_parameters(shape) - (0 if shape.tied else shape.vocab * shape.hidden)
    if not shape.experts:
        return total
    experts = 3 * shape.hidden * shape.ffn * shape.experts * shape.layers
    read = experts * (1 - (1 - shape.experts_per_token / shape.experts) ** slots)
    return total - experts + read / reached.experts


def _score(
    models: Models, layout: RunLayout, work: Workload, peak: float, reached: Efficiencies
) -> dict[str, float]:
    parts: dict[str, float] = {}
    frozen = models.teachers or (models.student,)
    each = work.teacher_pass / len(frozen)
    passes = [("student", models.student, work.student_pass, layout.pipeline)]
    passes += [("teacher", shape, each, layout.of_teacher.pipeline) for shape in frozen]
    for name, shape, share, pipeline in passes:
        if not share:
            continue
        count = work.responses * share
        products, attention = forward_flops(shape, work.sequence * count, work.pair_square, count)
        rate = layout.ranks * peak
        products *= slowed_by_experts(shape, reached)
        seconds = products / (rate * reached.score) + attention / (rate * reached.attention)
        many = max(1, math.ceil(work.microbatches(layout) * share))
        seconds *= 1 + (pipeline - 1) / many
        parts[f"score/{name}"] = parts.get(f"score/{name}", 0.0) + seconds
    return parts


def _train(
    models: Models,
    layout: RunLayout,
    work: Workload,
    gpu: GpuFigures,
    peak: float,
    reached: Efficiencies,
) -> dict[str, float]:
    products, attention = forward_flops(
        models.student, work.tokens, work.pair_square, work.responses
    )
    products *= slowed_by_experts(models.student, reached)
    more = {"none": 0.0, "full": 1.0, "selective": 0.65}[layout.recompute]
    if layout.recompute == "full":
        stage = models.student.layers / layout.pipeline
        more *= min(1.0, recomputed_layers(layout, stage) / stage)
    rate = layout.ranks * peak
    # attention's own backward makes its scores again
    seconds = products * (3 + more) / (rate * reached.train)
    seconds += attention * (3.5 + more) / (rate * reached.attention)
    many = work.microbatches(layout)
    if layout.virtual > 1:  # they come in groups of as many as there are stages
        many += -many % layout.pipeline
    bubble = (layout.pipeline - 1) / (many * layout.virtual) / work.updates
    own = parameters_of(models, layout, 0)
    moved = optimizer_total(models, layout) * 2 + own.total * (FLOAT * 3 + models.build.element)
    update = moved / (gpu.bandwidth * reached.memory) * work.updates
    return {
        "train/arithmetic": seconds,
        "train/pipeline bubble": seconds * bubble * work.updates,
        "train/update": update,
    }


def tokens_per_second(work: Workload, time: StepTime, ranks: int) -> float:
    """Response tokens per second and GPU."""
    return work.responses * work.lengths.mean / time.total / ranks


@dataclass(frozen=True)
class Apart:
    """The same step with engines on GPUs of their own, one step ahead of the trainer."""

    engine_ranks: int
    seconds: float
    lag: int = 1  # steps between the weights that sample and those that train


def placed_apart(time: StepTime, ranks: int) -> Apart | None:
    """The best split of the ranks by eighths, from the times together; None for a few ranks.

    Both sides are taken to be as fast as their share of the ranks.
    """
    best = None
    for eighths in range(1, 8):
        engines = ranks * eighths // 8
        if not 0 < engines < ranks:
            continue
        sampling = time.phases["rollout"] * ranks / engines
        rest = (time.total - time.phases["rollout"]) * ranks / (ranks - engines)
        found = Apart(engines, max(sampling, rest))
        if best is None or found.seconds < best.seconds:
            best = found
    return best
