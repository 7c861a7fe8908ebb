"""Bytes per rank by tenant and phase of a step: the peak and its moment.

Phases: ``rollout`` (the engine is awake, the trainer waits), ``score`` (forward-only passes),
``train`` (forward, backward, update). A tenant that is offloaded is absent where it is away.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from scope_megatron.family import ModelShape
from scope_megatron.instruments.plan.activations import (
    FLOAT,
    forward_only,
    layer_kept,
    norm_kept,
    recomputed_layers,
    stage_kept,
    working,
)
from scope_megatron.instruments.plan.facts.shapes import (
    Parameters,
    layer_parameters,
    total_parameters,
)
from scope_megatron.instruments.plan.layout import RunLayout
from scope_megatron.instruments.plan.models import (
    Models,
    PlacedTeacher,
    Streamed,
    parameters_of,
    placed_teachers,
    streamed_teachers,
    teacher_bytes,
    teacher_parameters,
)
from scope_megatron.instruments.plan.workload import Workload

MEMORY_PHASES = ("rollout", "score", "train")
TENANTS = (
    "student",
    "gradients",
    "masters",
    "optimizer",
    "activations",
    "loss head",
    "teacher",
    "teacher states",
    "engine parameters",
    "kv cache",
    "engine graphs",
    "communication",
    "runtime",
)
_GIB = 2**30
# What torch, CUDA and NCCL hold on a GPU beside tensors. Not measured by this project: NVIDIA's
# CUDA context with its modules is some 0.5 GiB on Hopper, NCCL's channels some 0.2 GiB for each
# communicator that is in use, vLLM's captured graphs 0.3 to 1 GiB.
RUNTIME, PER_GROUP, GRAPHS = int(0.6 * _GIB), int(0.2 * _GIB), int(0.6 * _GIB)
_BLOCK = FLOAT * 2**18  # the head's buffers for a block of logits
FRAGMENTS = 0.04  # of the tensors: what torch's allocator rounds up and cannot give away


@dataclass(frozen=True)
class RankMemory:
    """One rank's bytes: phase -> tenant -> bytes. ``stage`` is its pipeline stage."""

    stage: int
    phases: dict[str, dict[str, int]] = field(default_factory=dict)
    cache_tokens: int = 0  # tokens that the engine's cache holds
    samples: bool = False  # an engine alone

    def total(self, phase: str) -> int:
        return sum(self.phases[phase].values())

    @property
    def moment(self) -> str:
        """The phase of the peak."""
        return max(self.phases, key=self.total)

    @property
    def peak(self) -> int:
        return self.total(self.moment)


def in_flight(layout: RunLayout, stage: int, microbatches: int) -> float:
    """Microbatches' worth of a stage's activations that are alive at once, interleaved or not."""
    pipeline, virtual = layout.pipeline, layout.virtual
    if virtual == 1:
        return float(min(pipeline - stage, microbatches))
    parts = 2 * (pipeline - stage - 1) + (virtual - 1) * pipeline + 1
    return min(parts, microbatches * virtual) / virtual


def optimizer_bytes(parameters: Parameters, layout: RunLayout, element: int) -> tuple[float, float]:
    """(float32 masters, Adam's two moments), sharded where the optimizer is distributed.

    With ``optimizer.states: parameters`` there are no masters."""
    shares = (1.0, 1.0)
    if layout.distributed:
        shares = (1 / (layout.data * layout.context), 1 / layout.expert_replicas)
    held = parameters.dense * shares[0] + parameters.experts * shares[1]
    state = layout.state(element)
    return (held * FLOAT if element < state else 0.0), held * 2 * state


def optimizer_total(models: Models, layout: RunLayout) -> float:
    """Bytes of masters and moments on a rank of the first stage."""
    return sum(optimizer_bytes(parameters_of(models, layout, 0), layout, models.build.element))


def host_bytes(models: Models, layout: RunLayout) -> float:
    """Bytes of what a rank of the first stage has offloaded to host memory; gradients are freed."""
    away = optimizer_total(models, layout) if layout.optimizer_offload else 0.0
    return away + sum(
        teacher_parameters(models, layout, 0, teacher).total * teacher.element
        for teacher in placed_teachers(models, layout)
        if teacher.offload
    )


def head_bytes(
    models: Models, layout: RunLayout, rows: float, tokens: float
) -> tuple[float, float]:
    """(kept until the backward, needed while the head computes) on a last stage."""
    student, build = models.student, models.build
    columns, e = models.vocab(layout.tensor) / layout.tensor, build.element
    cut = layout.tensor if layout.sequence else 1
    states = e * student.hidden * tokens
    norm = norm_kept(student.hidden, build) * tokens / cut
    output = states / cut + (states if cut > 1 else 0.0)  # gathered over the tensor ranks
    if layout.pipeline > 1:
        output += 2 * states / cut  # received: the next microbatch, and this one's gradient to send
    if not build.head_chunk:  # all logits, and a gradient in their place
        return norm + rows * columns * max(e, FLOAT), output + rows * columns * e
    chunk = min(build.head_chunk, rows)
    weight, logits = columns * student.hidden * FLOAT, chunk * columns * FLOAT
    kept = norm + 2 * rows * student.hidden * e + weight
    needed = output + logits + (chunk * columns * e if e < FLOAT else 0.0)
    if models.exact:  # rows with a divergence, then those without: a weight's gradient for each
        needed += max(weight, logits) + 3 * min(_BLOCK, logits)
        if cut > 1 or layout.tensor > 1:
            hidden = max(shape.hidden for shape in models.teachers)
            needed += rows * hidden * e  # joined from the tensor ranks' slices
    return kept, needed


def teacher_states(
    models: Models, layout: RunLayout, work: Workload, placed: list[PlacedTeacher]
) -> float:
    """Bytes of the teacher's last hidden states that an exact divergence keeps for an update, on a
    rank of the last stage: a slice of their width, twice (by response, and joined by pack)."""
    return 2 * sum(
        _states(work, layout, layout, teacher, len(models.teachers))
        for teacher in (placed if models.exact else [])
    )


def _states(
    work: Workload, layout: RunLayout, cut: RunLayout, teacher: PlacedTeacher, teachers: int
) -> float:
    rows = work.responses * work.teacher_pass * work.lengths.mean / teachers
    rows /= cut.data * (layout.context if cut is layout else 1)
    return rows * teacher.shape.hidden / cut.tensor * teacher.element


def activation_bytes(
    models: Models, layout: RunLayout, work: Workload, stage: int
) -> tuple[float, float]:
    """(layers', loss head's) at the moment of a training pass that holds most."""
    student, build = models.student, models.build
    tokens = work.pack_tokens(layout) / layout.context
    layers = student.layers / layout.pipeline
    kept = stage_kept(student, layout, build, layers) * tokens
    kept *= in_flight(layout, stage, work.microbatches(layout))
    extra = working(student, layout, build, tokens)
    head, needed = 0.0, 0.0
    if stage == layout.pipeline - 1:
        head, needed = head_bytes(models, layout, tokens * work.response_share, tokens)
    most = kept + max(head + needed, extra)
    if layout.recompute == "full":  # a layer is made again, the head's gradients are gone
        again = recomputed_layers(layout, layers)
        whole = layer_kept(student, layout, build) * tokens
        most = max(most, kept - max(0.0, layers - again) * whole + whole + extra)
    return most - head - needed, head + needed


def engine_bytes(models: Models, layout: RunLayout, capacity: float) -> dict[str, float]:
    """vLLM's parameters, captured graphs, and the cache that fills its share of the memory."""
    shape, build = models.student, models.build
    parameters = total_parameters(shape) * build.element / layout.engine_tensor
    # the profile run: a full batch of prompt tokens through the widest layer, float32 logits
    profile = 8192 * build.element * (4 * shape.hidden + 3 * shape.ffn / layout.engine_tensor)
    profile += layout.max_num_seqs * shape.vocab * FLOAT * 2
    cache = capacity * layout.engine_share - parameters - profile
    return {"engine parameters": parameters, "engine graphs": GRAPHS + profile, "kv cache": cache}


def cache_bytes_per_token(shape: ModelShape, layout: RunLayout, element: int) -> float:
    """Keys and values of all layers on one rank of an engine."""
    groups = max(1.0, shape.query_groups / layout.engine_tensor)  # copied where there are few
    return 2 * shape.layers * groups * shape.head_dim * element


def rank_memory(
    models: Models,
    layout: RunLayout,
    work: Workload,
    capacity: float,
    stage: int = 0,
    placed: list[PlacedTeacher] | None = None,
) -> RankMemory:
    """The rank's memory on a GPU of ``capacity`` bytes; 0: tensors of the trainer alone."""
    placed = placed_teachers(models, layout) if placed is None else placed
    e = models.build.element
    own = parameters_of(models, layout, stage)
    masters, moments = optimizer_bytes(own, layout, e)
    activations, head = activation_bytes(models, layout, work, stage)
    always: dict[str, float] = {"student": own.total * e}
    trained = {
        "gradients": own.total * layout.gradient(e),
        "masters": masters,
        "optimizer": moments,
    }
    if not layout.optimizer_offload:
        always |= trained
    kept: dict[str, float] = {}  # while the student trains
    staying = teacher_bytes(models, layout, stage, placed)
    always |= {"teacher": staying} if staying else {}
    streamed = streamed_teachers(models, layout, stage, placed)
    if any(one.scored for one in streamed):
        kept = {"teacher": staying + streamed[-1].outputs}
    always |= _machine(layout, always, capacity)
    last = stage == layout.pipeline - 1
    states = teacher_states(models, layout, work, placed) if last else 0.0
    scoring = _scoring(models, layout, work, stage, placed, staying, streamed)
    phases: dict[str, dict[str, float]] = {
        "rollout": dict(always),
        "score": always | scoring,
        "train": always
        | trained
        | kept
        | {"activations": activations, "loss head": head, "teacher states": states},
    }
    cache = 0
    if capacity and work.samples and not layout.sampling:
        engine = engine_bytes(models, layout, capacity)
        cache = int(engine["kv cache"] / cache_bytes_per_token(models.student, layout, e))
        engine["kv cache"] = max(0.0, engine["kv cache"])
        for phase in MEMORY_PHASES if not layout.engine_sleeps else MEMORY_PHASES[:1]:
            phases[phase] |= engine
        if layout.engine_sleeps:  # graphs stay: their pool does not sleep
            for phase in MEMORY_PHASES[1:]:
                phases[phase]["engine graphs"] = GRAPHS
    ordered = {
        phase: {name: int(held[name]) for name in TENANTS if held.get(name)}
        for phase, held in phases.items()
    }
    return RankMemory(stage, ordered, max(0, cache))


def _scoring(
    models: Models,
    layout: RunLayout,
    work: Workload,
    stage: int,
    placed: list[PlacedTeacher],
    staying: float,
    streamed: list[Streamed],
) -> dict[str, float]:
    """What scoring adds at the moment of its forward-only passes that holds most."""

    def activations(shape: ModelShape, cut: RunLayout) -> float:
        tokens = work.pack_tokens(cut) / cut.context
        rows = min(models.build.head_chunk or tokens, tokens)
        head = rows * models.vocab(cut.tensor) / cut.tensor * FLOAT
        needed = forward_only(shape, cut, models.build, tokens)
        places = layout.stages_of(cut, stage)
        if places.stop > 1 and places.start < cut.pipeline - 1 and cut.pipeline > 2:
            # between others: what was received besides what is sent
            sent = tokens * shape.hidden * models.build.element
            needed += sent / (cut.tensor if cut.sequence else 1)
        return max(needed, head)

    own_pass = work.student_pass or (work.teacher_pass and not models.teachers)
    moments = [{"activations": activations(models.student, layout) if own_pass else 0.0}]
    states = 0.0
    for teacher, brought in zip(placed, streamed, strict=True):
        states += _states_made(models, layout, work, stage, teacher)
        needed = activations(teacher.shape, teacher.cut)
        moments.append({"activations": needed, "teacher states": states})
        if brought.scored:
            moments[-1]["teacher"] = staying + brought.scored
    return max(moments, key=lambda moment: sum(moment.values()))


def _states_made(
    models: Models, layout: RunLayout, work: Workload, stage: int, teacher: PlacedTeacher
) -> float:
    """Bytes of an exact divergence's states where a teacher makes them; from a layout of its own
    they travel afterwards."""
    cut = teacher.cut if teacher.own else layout
    if not models.exact or cut.pipeline - 1 not in layout.stages_of(cut, stage):
        return 0.0
    return _states(work, layout, cut, teacher, len(models.teachers))


def _machine(layout: RunLayout, held: dict[str, float], capacity: float) -> dict[str, float]:
    """What is not tensors; nothing on a CPU."""
    if not capacity:
        return {}
    sizes = (layout.tensor, layout.pipeline, layout.data, layout.expert, layout.context)
    groups = 1 + sum(size > 1 for size in sizes) + (layout.engine_tensor > 1)
    return {
        "communication": groups * PER_GROUP,
        "runtime": RUNTIME + FRAGMENTS * sum(held.values()),
    }


def run_memory(
    models: Models, layout: RunLayout, work: Workload, capacity: float
) -> list[RankMemory]:
    """Of a rank of every pipeline stage."""
    stages = range(layout.pipeline)
    if layout.pipeline > 4:  # those between are smaller than the second
        stages = sorted({0, 1, layout.pipeline - 1})  # type: ignore[assignment]
    placed = placed_teachers(models, layout)
    training = [rank_memory(models, layout, work, capacity, stage, placed) for stage in stages]
    return [*training, *([sampling_memory(models, layout, capacity)] if layout.sampling else [])]


def sampling_memory(models: Models, layout: RunLayout, capacity: float) -> RankMemory:
    """Of a rank that only samples."""
    held = engine_bytes(models, layout, capacity)
    each = cache_bytes_per_token(models.student, layout, models.build.element)
    cache = max(0, int(held["kv cache"] / each))
    held["kv cache"] = max(0.0, held["kv cache"])
    held |= {"communication": 2 * PER_GROUP, "runtime": RUNTIME}
    ordered = {name: int(held[name]) for name in TENANTS if held.get(name)}
    return RankMemory(layout.pipeline, dict.fromkeys(MEMORY_PHASES, ordered), cache, samples=True)


def experts_resident(shape: ModelShape, layout: RunLayout) -> int:
    """Experts of a layer that a rank holds."""
    held = layer_parameters(shape, layout.tensor, layout.expert).experts
    return 0 if not held else shape.experts // max(1, layout.expert)
