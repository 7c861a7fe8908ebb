"""Bytes that a rank sends for each kind of collective in a step, and over which link."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from scope_megatron.family import ModelShape
from scope_megatron.instruments.plan.activations import FLOAT
from scope_megatron.instruments.plan.facts.figures import Efficiencies, GpuFigures
from scope_megatron.instruments.plan.facts.shapes import total_parameters
from scope_megatron.instruments.plan.layout import RunLayout
from scope_megatron.instruments.plan.memory import optimizer_total
from scope_megatron.instruments.plan.models import (
    Models,
    parameters_of,
    placed_teachers,
    teacher_parameters,
)
from scope_megatron.instruments.plan.workload import Workload


@dataclass(frozen=True)
class Transfer:
    """One kind of collective: bytes that each rank sends in a step."""

    name: str
    phase: str
    sent: float
    link: str  # link: GPUs of a node; network: between nodes; host

    def seconds(self, gpu: GpuFigures, reached: Efficiencies) -> float:
        """Its time alone."""
        rate = {"link": gpu.link, "network": gpu.network, "host": gpu.host}[self.link]
        return self.sent / (rate * reached.link)


def _link(span: int, gpu: GpuFigures) -> str:
    """The slowest link of a group that spans so many neighbouring ranks."""
    return "link" if span <= gpu.per_node else "network"


def transfers(models: Models, layout: RunLayout, work: Workload, gpu: GpuFigures) -> list[Transfer]:
    """Of sampling, the scoring and training passes, the update and the transfer to the engine."""
    again = {"none": (0, 0), "selective": (0, 1), "full": (1, 1)}[layout.recompute]
    trained = _Pass(models.student, layout, work.tokens, 2 + again[0], 2 + again[1])
    found = list(_sampling(models, layout, work, gpu))
    found += _of_pass(trained, "train", work, models, gpu)
    placed = placed_teachers(models, layout)
    frozen = [(one.shape, one.cut) for one in placed] or [(models.student, layout)]
    each = work.teacher_pass / len(frozen)
    scored = [_Pass(models.student, layout, work.tokens * work.student_pass)]
    scored += [_Pass(shape, cut, work.tokens * each) for shape, cut in frozen]
    sums: dict[tuple[str, str], float] = {}
    for one in scored:
        for sent in _of_pass(one, "score", work, models, gpu):
            sums[sent.name, sent.link] = sums.get((sent.name, sent.link), 0.0) + sent.sent
    found += [Transfer(name, "score", sent, link) for (name, link), sent in sums.items()]
    rows = work.responses * each * work.lengths.mean / layout.data
    for teacher in placed if models.exact else ():
        if teacher.own:
            states = rows * teacher.shape.hidden * teacher.element / layout.tensor
            found.append(Transfer("teacher states", "score", states, _link(layout.ranks, gpu)))
    found += _gradients(models, layout, work, gpu)
    found += _host(models, layout, work)
    return [transfer for transfer in found if transfer.sent > 0]


@dataclass(frozen=True)
class _Pass:
    """One model's pass over tokens of all replicas, with how often its collectives are made: a
    forward, a backward, and what recomputation makes again."""

    shape: ModelShape
    cut: RunLayout
    tokens: float
    whole: int = 1  # those of attention
    inner: int = 1  # those of the MLP and the experts


def _of_pass(
    one: _Pass, phase: str, work: Workload, models: Models, gpu: GpuFigures
) -> Iterator[Transfer]:
    shape, cut, e = one.shape, one.cut, models.build.element
    t, c = cut.tensor, cut.context
    local, layers = one.tokens / (cut.data * c), shape.layers / cut.pipeline
    trains = phase == "train"
    hidden = local * shape.hidden * e
    around = 2 * (t - 1) / t * hidden  # a sum over the ranks, whole or as gather and scatter
    yield Transfer("tensor", phase, around * layers * (one.whole + one.inner), _link(t, gpu))
    # maxima and sums of the loss, the gradient of its hidden states
    rows = local * work.response_share
    head = (t - 1) * rows * _STATISTICS * FLOAT
    head += 2 * (t - 1) / t * rows * shape.hidden * e if trains else 0.0
    yield Transfer("loss head", phase, head, _link(t, gpu))
    if c > 1:  # keys and values of all tokens; the gradients of what a rank has
        wide = 2 * shape.query_groups * shape.head_dim / t
        again = max(one.whole, one.inner)  # attention is made again with either recomputation
        yield Transfer(
            "context", phase, (c - 1) * local * wide * e * layers * again, _link(t * c, gpu)
        )
    if cut.pipeline > 1:
        ways = (2 if trains else 1) * cut.virtual
        yield Transfer(
            "pipeline", phase, ways * hidden / (t if cut.sequence else 1), _link(cut.ranks, gpu)
        )
    if shape.experts and cut.expert > 1:  # to the experts and back
        routed = hidden * shape.experts_per_token / t * (cut.expert - 1) / cut.expert
        yield Transfer("expert", phase, 2 * routed * layers * one.inner, _link(cut.expert, gpu))


_STATISTICS = 7  # float32 numbers of a token that the loss head gathers from each rank


def _sampling(
    models: Models, layout: RunLayout, work: Workload, gpu: GpuFigures
) -> Iterator[Transfer]:
    """Within an engine, and the parameters that it gets."""
    if not work.samples:
        return
    student, t, e = models.student, layout.engine_tensor, models.build.element
    tokens = work.responses * work.lengths.mean + work.prompts * work.prompt_tokens
    sums = 2 * 2 * (t - 1) / t * tokens / layout.engines * student.hidden * e * student.layers
    yield Transfer("engine", "rollout", sums, _link(t, gpu))
    held = total_parameters(student) * e / t
    own = 0.0 if layout.sampling else parameters_of(models, layout, 0).total * e
    span = layout.gpus if layout.sampling else layout.ranks
    yield Transfer("parameters", "sync", max(0.0, held - own), _link(span, gpu))


def _gradients(
    models: Models, layout: RunLayout, work: Workload, gpu: GpuFigures
) -> Iterator[Transfer]:
    """Sums over the replicas, of the others' and of the experts' parameters. With a distributed
    optimizer each gets the sums of its share, and the others' parameters after the update."""
    own, e = parameters_of(models, layout, 0), models.build.element
    gradient = layout.gradient(e)
    # a rank's neighbours are its tensor group: replicas are `tensor` ranks apart
    link = _link(layout.tensor * layout.data * layout.context, gpu)
    for name, count, ranks in (
        ("gradients", own.dense, layout.data * layout.context),
        ("experts' gradients", own.experts, layout.expert_replicas),
    ):
        away = (ranks - 1) / ranks * count * work.updates
        yield Transfer(name, "train", away * gradient * (1 if layout.distributed else 2), link)
        if layout.distributed:
            updated = name.replace("gradients", "parameters")
            yield Transfer(updated, "train", away * e, link)


def _host(models: Models, layout: RunLayout, work: Workload) -> list[Transfer]:
    """What is moved to host memory and back."""
    found = []
    if layout.optimizer_offload:
        held = optimizer_total(models, layout)
        found.append(Transfer("optimizer offload", "train", 2 * held, "host"))
    brought = 0.0
    for teacher in placed_teachers(models, layout):
        if teacher.offload:  # every microbatch brings every layer anew
            held = teacher_parameters(models, layout, 0, teacher).total * teacher.element
            many = work.microbatches(teacher.cut) * work.updates
            brought += held * max(1.0, many * work.teacher_pass / len(models.teachers))
    if brought:
        found.append(Transfer("teacher offload", "score", brought, "host"))
    return found
