"""Seconds of a step by phase, from arithmetic, bandwidths and the shares of them that are reached.

What a pass takes of a rank is in ``passes``. A pipeline goes as fast as its fullest stage, the last
with its output weight; it fills and empties at the pace of the others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from scope_megatron.family import ModelShape
from scope_megatron.instruments.plan.activations import FLOAT
from scope_megatron.instruments.plan.facts.figures import Efficiencies, GpuFigures
from scope_megatron.instruments.plan.facts.shapes import active_parameters, total_parameters
from scope_megatron.instruments.plan.layout import RunLayout
from scope_megatron.instruments.plan.memory import (
    cache_bytes_per_token,
    engine_bytes,
    optimizer_total,
)
from scope_megatron.instruments.plan.models import Models, parameters_of, placed_teachers
from scope_megatron.instruments.plan.seconds.decode import Decoding, StepCost, decode_share, spread
from scope_megatron.instruments.plan.seconds.passes import (
    Passed,
    arithmetic_rate,
    head_work,
    layers_work,
)
from scope_megatron.instruments.plan.seconds.traffic import Transfer, transfers
from scope_megatron.instruments.plan.workload import Workload

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


def step_time(
    models: Models,
    layout: RunLayout,
    work: Workload,
    gpu: GpuFigures,
    reached: Efficiencies,
) -> StepTime:
    """Of one step, the phases one after the other."""
    sent = tuple(transfers(models, layout, work, gpu))
    parts: dict[str, float] = {}
    decoding = None
    if work.samples:
        decoding, prefill = _rollout(models, layout, work, gpu, reached)
        parts["rollout/prompts"], parts["rollout/decoding"] = prefill, decoding.seconds
    parts |= _score(models, layout, work, gpu, reached)
    parts |= _train(models, layout, work, gpu, reached)
    for transfer in sent:
        key = f"{transfer.phase}/{transfer.name}"
        parts[key] = parts.get(key, 0.0) + transfer.seconds(gpu, reached)
    streamed = "score/teacher offload"  # a layer's copy runs while another computes
    if streamed in parts:
        parts[streamed] = max(0.0, parts[streamed] - parts.get("score/teacher", 0.0))
    if layout.overlap:  # beside the backward of the last microbatch
        backward = sum(parts[f"train/{name}"] for name in ("products", "attention", "memory"))
        backward *= 2 / 3 / (work.microbatches(layout) * work.updates)
        parts["train/gradients"] = max(0.0, parts.get("train/gradients", 0.0) - backward)
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
    peak = arithmetic_rate(gpu, e) * reached.score
    share = max(1, math.ceil(work.responses / max(1, layout.engines)))
    per_token = cache_bytes_per_token(shape, layout, e)
    cache = engine_bytes(models, layout, gpu.memory)["kv cache"] / per_token
    rate = gpu.bandwidth * reached.decode
    hops = 2 * shape.layers * reached.hop_s if t > 1 else 0.0
    weights = _decode_parameters(shape, min(share, layout.max_num_seqs), reached) * e / t
    cost = StepCost(
        fixed=weights / rate + shape.layers * reached.overhead_s + hops + reached.host_s,
        each=shape.vocab * FLOAT * 3 / rate,
        token=per_token / rate,
        arithmetic=2.0 * active_parameters(shape) / t / peak,
    )
    followed = _decode(
        work.lengths.values,
        work.lengths.most,
        share,
        work.prompt_tokens,
        layout.max_num_seqs,
        max(1, int(cache)),
        cost,
    )
    tokens = work.prompt_tokens * work.prompts  # a group's prompt is read once
    prefill = 2.0 * active_parameters(shape) * tokens / (layout.engine_ranks * peak)
    return followed, prefill


@lru_cache(maxsize=4096)
def _decode(
    values: tuple[float, ...],
    longest: float,
    share: int,
    prompt: float,
    slots: int,
    cache: int,
    cost: StepCost,
) -> Decoding:
    """As :func:`decode_share`, of the engine that has the step's longest response; of a large share
    some stand for all, each for as many slots."""
    scale = max(1, math.ceil(share / SEQUENCES))
    if scale == 1:
        return decode_share(spread(values, share, longest), prompt, slots, cache, cost)
    scaled = StepCost(cost.fixed, cost.each * scale, cost.token * scale, cost.arithmetic * scale)
    lengths = spread(values, share // scale, longest)
    return decode_share(lengths, prompt, max(1, slots // scale), cache / scale, scaled)


def _decode_parameters(shape: ModelShape, slots: int, reached: Efficiencies) -> float:
    """Parameters that a decoding step reads: of the experts those that any slot goes to, which are
    read more slowly."""
    total = total_parameters(shape) - (0 if shape.tied else shape.vocab * shape.hidden)
    if not shape.experts:
        return total
    experts = 3 * shape.hidden * shape.ffn * shape.experts * shape.layers
    read = experts * (1 - (1 - shape.experts_per_token / shape.experts) ** slots)
    return total - experts + read / reached.experts


def _passed(cut: RunLayout, work: Workload, share: float, **rest: Any) -> Passed:
    """What a rank sees of a share of the responses."""
    ranks = cut.data * cut.context
    tokens = work.tokens * share / ranks
    return Passed(
        tokens=tokens,
        squares=work.pair_square * work.responses * share / ranks,
        rows=tokens * work.response_share,
        **rest,
    )


def _balance(work: Workload, reached: Efficiencies) -> float:
    return reached.balance if work.lengths.varied else 1.0


def _score(
    models: Models, layout: RunLayout, work: Workload, gpu: GpuFigures, reached: Efficiencies
) -> dict[str, float]:
    parts: dict[str, float] = {}
    frozen = [(teacher.shape, teacher.cut) for teacher in placed_teachers(models, layout)]
    frozen = frozen or [(models.student, layout)]  # the student teaches itself
    each = work.teacher_pass / len(frozen)
    passes = [("student", models.student, work.student_pass, layout)]
    passes += [("teacher", shape, each, cut) for shape, cut in frozen]
    e, reach = models.build.element, reached.score * _balance(work, reached)
    for name, shape, share, cut in passes:
        if not share:
            continue
        many = max(1.0, math.ceil(work.microbatches(cut) * work.updates * share))
        passed = _passed(cut, work, share, microbatches=many)
        layers = layers_work(shape, cut, models.build, passed, shape.layers / cut.pipeline)
        head = head_work(shape.hidden, models.vocab(cut.tensor) / cut.tensor, models.build, passed)
        middle = sum(layers.seconds(gpu, e, reached, reach).values())
        last = sum((layers + head).seconds(gpu, e, reached, reach).values())
        slowest = last  # its layers are no fewer
        waiting = (cut.pipeline - 1) / many * middle
        parts[f"score/{name}"] = parts.get(f"score/{name}", 0.0) + slowest + waiting
    return parts


def _train(
    models: Models, layout: RunLayout, work: Workload, gpu: GpuFigures, reached: Efficiencies
) -> dict[str, float]:
    student, build = models.student, models.build
    many = work.microbatches(layout)
    if layout.virtual > 1:  # they come in groups of as many as there are stages
        many += -many % layout.pipeline
    gradient = layout.gradient(build.element)
    passed = _passed(
        layout, work, 1.0, microbatches=many * work.updates, trains=True, gradient=gradient
    )
    middle = layers_work(student, layout, build, passed, student.layers / layout.pipeline)
    columns = models.vocab(layout.tensor) / layout.tensor
    last = middle + head_work(student.hidden, columns, build, passed)
    if models.exact:  # the teachers' logits beside the student's
        rows = passed.rows * work.teacher_pass / max(1, len(models.teachers))
        for shape in models.teachers:
            taught = replace(passed, rows=rows, microbatches=0.0, trains=False)
            last += head_work(shape.hidden, columns, build, taught)
    reach = reached.train * _balance(work, reached)
    parts = last.seconds(gpu, build.element, reached, reach)
    pace = sum(middle.seconds(gpu, build.element, reached, reach).values())
    own = parameters_of(models, layout, 0)
    moved = 2 * optimizer_total(models, layout) + own.total * (3 * gradient + build.element)
    return {f"train/{name}": seconds for name, seconds in parts.items()} | {
        "train/pipeline bubble": (layout.pipeline - 1) / (many * layout.virtual) * pace,
        "train/update": moved / (gpu.bandwidth * reached.memory) * work.updates,
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
