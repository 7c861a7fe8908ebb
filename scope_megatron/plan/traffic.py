"""Bytes that a rank sends for each kind of collective in a step, and over which link."""

from __future__ import annotations

from dataclasses import dataclass

from scope_megatron.plan.activations import FLOAT
from scope_megatron.plan.facts.figures import Efficiencies, GpuFigures
from scope_megatron.plan.facts.shapes import total_parameters
from scope_megatron.plan.layout import RunLayout
from scope_megatron.plan.memory import Models, parameters_of, teacher_parameters
from scope_megatron.plan.workload import Workload


@dataclass(frozen=True)
class Transfer:
    """One kind of collective: bytes that each rank sends in a step."""

    name: str
    phase: str
    sent: float
    link: str  # link: GPUs of a node; network: between nodes; host
    hidden: float = 0.0  # share of its time behind arithmetic

    def seconds(self, gpu: GpuFigures, reached: Efficiencies) -> float:
        """Time that is waited for."""
        rate = {"link": gpu.link, "network": gpu.network, "host": gpu.host}[self.link]
        return self.sent * (1 - self.hidden) / (rate * reached.link)


def _link(span: int, gpu: GpuFigures) -> str:
    """The slowest link of a group that spans so many neighbouring ranks."""
    return "link" if span <= gpu.per_node else "network"


def transfers(models: Models, layout: RunLayout, work: Workload, gpu: GpuFigures) -> list[Transfer]:
    """Of the training passes, the scoring passes, the update and the transfer to the engine."""
    student, e = models.student, models.build.element
    local = work.tokens / (layout.data * layout.context)  # tokens of a rank's replica
    layers = student.layers / layout.pipeline
    found: list[Transfer] = []

    def add(name: str, phase: str, sent: float, span: int, hidden: float = 0.0) -> None:
        if sent > 0:
            found.append(Transfer(name, phase, sent, _link(span, gpu), hidden))

    t = layout.tensor
    again = {"none": 0, "selective": 1, "full": 2}[layout.recompute]
    if t > 1:  # two sums over the ranks per layer and direction, whole or as gather and scatter
        one = 2 * (t - 1) / t * local * student.hidden * e
        add("tensor", "train", one * layers * (4 + again) * 1.0, t)
    add("tensor", "score", _scoring_sums(models, layout, work), max(t, layout.of_teacher.tensor))
    if models.exact and layout.cuts_teacher_otherwise:
        rows = work.responses * work.teacher_pass * work.lengths.mean / layout.data
        hidden = sum(shape.hidden for shape in models.teachers) / len(models.teachers)
        add("teacher states", "score", rows * hidden * models.of_teacher / t, layout.ranks)
    if layout.context > 1:  # keys and values of the whole sequence, both directions
        c = layout.context
        wide = 2 * student.query_groups * student.head_dim / t
        once = (c - 1) * local * wide * e
        add("context", "train", once * layers * 3, t * c, hidden=0.5)
    if layout.pipeline > 1:
        sent = local * student.hidden * e / (t if layout.sequence else 1)
        add("pipeline", "train", 2 * sent * layout.virtual, layout.ranks)
    if layout.expert > 1:
        routed = local * student.experts_per_token * student.hidden * e / t
        away = (layout.expert - 1) / layout.expert
        add("expert", "train", routed * away * layers * (4 + again), layout.expert)
    found += _gradients(models, layout, work, gpu)
    found += _host(models, layout, work)
    if work.samples:  # what a rank's engine holds and the rank does not
        engine = total_parameters(student) * e / layout.engine_tensor
        own = parameters_of(models, layout, 0).total * e
        add("parameters", "sync", max(0.0, engine - own), t * layout.pipeline * layout.data)
    return found


def _scoring_sums(models: Models, layout: RunLayout, work: Workload) -> float:
    """Bytes of the sums over tensor ranks of the scoring passes, two in every layer."""
    each = work.teacher_pass / max(1, len(models.teachers))
    passes = [(models.student, work.student_pass, layout)]
    passes += [(shape, each, layout.of_teacher) for shape in models.teachers]
    sent = 0.0
    for shape, share, cut in passes:
        local = work.tokens / (cut.data * cut.context) * share
        one = 2 * (cut.tensor - 1) / cut.tensor * local * shape.hidden * models.build.element
        sent += 2 * one * shape.layers / cut.pipeline
    return sent


def _gradients(
    models: Models, layout: RunLayout, work: Workload, gpu: GpuFigures
) -> list[Transfer]:
    """Sums over the replicas, of the others' and of the experts' parameters."""
    own = parameters_of(models, layout, 0)
    found = []
    stage = layout.tensor * layout.data * layout.context
    for name, count, ranks in (
        ("gradients", own.dense, layout.data * layout.context),
        ("experts' gradients", own.experts, layout.expert_replicas),
    ):
        if ranks > 1 and count:
            away = (ranks - 1) / ranks * count * work.updates
            both = FLOAT + models.build.element if layout.distributed else 2 * FLOAT
            # a rank's neighbours are its tensor group: replicas are `tensor` ranks apart
            found.append(Transfer(name, "train", away * both, _link(stage, gpu)))
    return found


def _host(models: Models, layout: RunLayout, work: Workload) -> list[Transfer]:
    """What is moved to host memory and back."""
    found = []
    if layout.optimizer_offload:
        held = optimizer_total(models, layout)
        found.append(Transfer("optimizer offload", "train", 2 * held, "host"))
    if layout.teacher_offload and models.teacher is not None:
        # every microbatch brings every layer anew
        held = teacher_parameters(models, layout, 0).total * models.of_teacher
        passes = max(1.0, work.microbatches(layout) * work.teacher_pass / len(models.teachers))
        found.append(Transfer("teacher offload", "score", held * passes, "host"))
    return found


def optimizer_total(models: Models, layout: RunLayout) -> float:
    """Bytes of masters and moments on a rank of the first stage."""
    from scope_megatron.plan.memory import optimizer_bytes

    own = parameters_of(models, layout, 0)
    return sum(optimizer_bytes(own, layout, models.build.element))
