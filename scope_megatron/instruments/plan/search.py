"""The best layouts for so many GPUs: every cut that the models allow, cheapest settings first.

What a run learns stays as it is: the search changes where things are, not ``rollout.lag``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from scope_megatron.family import ModelShape
from scope_megatron.instruments.plan.estimate import RunPlan
from scope_megatron.instruments.plan.facts.shapes import total_parameters
from scope_megatron.instruments.plan.layout import RunLayout, layout_problems
from scope_megatron.instruments.plan.memory import host_bytes
from scope_megatron.instruments.plan.models import Models
from scope_megatron.instruments.plan.remedies import HEADROOM, SHORTEST_PART, best_share

LONGEST_PIPELINE = 64
_WAITS = 0.02  # of a step that a pipeline waits: virtual stages are tried above it
_ALONE = 0.85  # of a GPU's memory for an engine that shares it with no trainer


@dataclass(frozen=True)
class Searched:
    """The best plans, and how many layouts were looked at."""

    plans: list[RunPlan]
    cuts: int
    nearest: RunPlan | None  # where nothing fits: what lacks least


def search_layouts(base: RunPlan, gpus: int, most: int = 10) -> Searched:
    """The fastest layouts of ``gpus`` GPUs that fit, one for each cut of the models and placement
    of the engines."""
    found: list[RunPlan] = []
    nearest: RunPlan | None = None
    cuts = 0
    for context in (c for c in (1, 2, 4, 8, 16) if c == 1 or _long(base, c)):
        if any(plan.layout.recompute == "none" for plan in found):
            break  # sequences fit whole, with nothing made again
        for sampling in _splits(base, gpus):
            start = replace(base.layout, sampling=sampling, context=context)
            for cut in _cuts(replace(base, layout=start), gpus - sampling):
                cuts += 1
                plan, missing = _settled(replace(base, layout=cut))
                if plan is not None:
                    found.append(plan)
                elif missing is not None and (nearest is None or missing.over < nearest.over):
                    nearest = missing
    found.sort(key=lambda plan: plan.time.total)
    return Searched(_worthwhile(found)[:most], cuts, None if found else nearest)


def _long(base: RunPlan, context: int) -> bool:
    return base.work.longest >= context * SHORTEST_PART


def _worthwhile(plans: list[RunPlan]) -> list[RunPlan]:
    """The fastest for each cut and placement. Sequences are cut over ranks only where that is
    faster than every layout that leaves them whole, or none of these fits."""
    seen, kept = set[tuple[int, ...]](), list[RunPlan]()
    whole = False
    for plan in plans:
        cut = plan.layout
        key = (cut.tensor, cut.pipeline, cut.context, cut.expert, bool(cut.sampling))
        if key in seen or (whole and cut.context > 1):
            continue
        kept.append(plan)
        seen.add(key)
        whole = whole or cut.context == 1
    return kept


def _splits(base: RunPlan, gpus: int) -> Iterator[int]:
    """GPUs that only sample: none, or so many quarters. A step ahead needs engines on their own."""
    if not (base.work.samples and base.layout.lag):
        yield 0
    if base.work.samples:
        yield from sorted({gpus * quarters // 4 for quarters in (1, 2, 3)} - {0, gpus})


def _cuts(base: RunPlan, ranks: int) -> Iterator[RunLayout]:
    """Sizes that divide the models, the ranks and the prompts of a step."""
    models, work, node = base.models, base.work, base.gpu.per_node
    tensors = [t for t in _divisors(node) if t <= ranks]
    pipelines = [p for p in _divisors(models.student.layers) if p <= LONGEST_PIPELINE]
    context = base.layout.context
    for tensor, pipeline in product(tensors, pipelines):
        cut = tensor * context * pipeline
        if ranks % cut or work.prompts % (ranks // cut):
            continue
        data = ranks // cut
        for expert in _experts([models.student], tensor * context * data):
            layout = replace(
                base.layout,
                tensor=tensor,
                pipeline=pipeline,
                data=data,
                expert=expert,
                virtual=1,
                sequence=tensor > 1,
                distributed=data * context > 1,
                recompute="none",
                recompute_layers=None,
                optimizer_offload=False,
                engine_tensor=1,
            )
            if next(layout_problems(layout, models.student, ()), None) is None:
                yield layout


def _experts(shapes: list[ModelShape], stage: int) -> list[int]:
    counts = [shape.experts for shape in shapes if shape.experts]
    if not counts:
        return [1]
    smallest = min(counts)
    return [e for e in _divisors(smallest) if stage % e == 0 and all(n % e == 0 for n in counts)]


def _divisors(size: int) -> list[int]:
    return [n for n in range(1, size + 1) if size % n == 0]


def _settled(base: RunPlan) -> tuple[RunPlan | None, RunPlan | None]:
    """(the fastest settings with which a cut fits, else the least that lacks)."""
    best: RunPlan | None = None
    nearest: RunPlan | None = None
    offloads = (False, True) if base.work.samples and not base.layout.sampling else (False,)
    homes = list(_homes(base))
    for microbatch in _microbatches(base):
        for offload, home in product(offloads, homes):
            change = {"microbatch": microbatch, "optimizer_offload": offload} | home
            tried = replace(base, layout=replace(base.layout, **change))
            if not _in_host(tried):
                continue
            plan, missing = _with_engine(tried)
            if plan is None:
                if missing is not None and (nearest is None or missing.over < nearest.over):
                    nearest = missing
            elif best is None or plan.time.total < best.time.total:
                best = plan
        if best is None:
            break  # a larger one needs more
    if best is not None:
        best = _with_virtual(best)
    return best, nearest


def _microbatches(base: RunPlan) -> list[int]:
    """The longest sequence, and twice as much; with context parallelism as it is padded."""
    layout, work = base.layout, base.work
    pad = 2 * layout.context * layout.tensor - 1 if layout.context > 1 else 0
    return [work.longest * n + pad for n in (1, 2)]


def _homes(base: RunPlan) -> Iterator[dict[str, Any]]:
    """Where the teacher may be: cut as the student, by itself over the GPUs of a node, on the host.

    Where several teachers have layouts of their own, as the configuration says.
    """
    layout, models = base.layout, base.models
    if not models.teachers or layout.teachers:
        yield {}
        return
    as_student: dict[str, Any] = {"teacher_tensor": 0, "teacher_pipeline": 0}
    as_student["teacher_context"] = 1
    as_student |= {"teacher_expert": 1, "teacher_sequence": False}
    away = as_student | {"teacher_offload": True}
    for home in ({"teacher_offload": False} | place for place in (as_student, *_own_cuts(base))):
        if _can_be(replace(layout, **home), models):
            yield home
    if _can_be(replace(layout, **away), models):
        yield away


def _can_be(layout: RunLayout, models: Models) -> bool:
    return next(layout_problems(layout, models.student, models.teachers), None) is None


def _in_host(plan: RunPlan) -> bool:
    """Whether the host has room for what is offloaded, with as much left for itself."""
    return host_bytes(plan.models, plan.layout) <= plan.gpu.host_memory / 2


def _own_cuts(base: RunPlan) -> Iterator[dict[str, Any]]:
    """Over as many GPUs of a node as its heads allow; its experts over more, until they are a tenth
    of the memory."""
    layout, shapes = base.layout, base.models.teachers
    for tensor in reversed(_divisors(min(base.gpu.per_node, layout.ranks))):
        cut: dict[str, Any] = {"teacher_tensor": tensor, "teacher_pipeline": 1}
        cut |= {"teacher_context": 1, "teacher_sequence": tensor > 1, "teacher_expert": 1}
        if not _can_be(replace(layout, **cut), base.models):
            continue
        if tensor != layout.tensor or layout.pipeline > 1:
            yield cut
        held = sum(total_parameters(shape) for shape in shapes) * 2
        experts = [e for e in _experts(list(shapes), layout.ranks) if e > 1]
        enough = [e for e in experts if held / e <= base.gpu.memory / 10]
        for expert in enough[:1] or experts[-1:]:
            yield cut | {"teacher_expert": expert}
        return


def _with_engine(plan: RunPlan) -> tuple[RunPlan | None, RunPlan | None]:
    """(with as little recomputation as fits, and the engine's size and share that sample fastest,
    else what lacks least)."""
    if not plan.work.samples:
        return _recomputed(plan)
    sizes = _engines(plan)
    if plan.layout.sampling:
        share = _ALONE
    else:
        whole = replace(plan, layout=replace(plan.layout, engine_tensor=sizes[-1]))
        share = best_share(whole)
    largest = replace(plan.layout, engine_tensor=sizes[-1], engine_share=share)
    plan = replace(plan, layout=largest)
    if share < 0.05:
        return None, plan
    trained, missing = _recomputed(plan)
    if trained is None:
        return None, missing
    best: RunPlan | None = None
    for engine in reversed(sizes):
        candidate = trained
        if engine != trained.layout.engine_tensor:
            candidate = replace(trained, layout=replace(trained.layout, engine_tensor=engine))
        if candidate.fits and (best is None or candidate.time.total < best.time.total):
            best = candidate
    return best, None if best else trained


def _engines(plan: RunPlan) -> list[int]:
    """Tensor sizes of an engine: divisors of the student's, or of what a node holds."""
    layout, shape = plan.layout, plan.models.student
    if not layout.sampling:
        return _divisors(layout.tensor)
    sizes = _divisors(min(plan.gpu.per_node, layout.sampling))
    heads = (size for name, size in shape.divided().items() if name != "num_hidden_layers")
    whole = list(heads)
    ranks = (layout.sampling, layout.ranks)  # an engine lies on one node
    return [n for n in sizes if all(size % n == 0 for size in (*ranks, *whole))]


def _recomputed(plan: RunPlan) -> tuple[RunPlan | None, RunPlan | None]:
    """(with the least recomputation whose training fits, else what lacks)."""
    room = (1 - HEADROOM) * plan.gpu.memory
    for mode in ("none", "selective", "full"):
        if mode != plan.layout.recompute:
            plan = replace(plan, layout=replace(plan.layout, recompute=mode))
        training = [rank for rank in plan.ranks if not rank.samples]
        if max(rank.total("train") for rank in training) <= room and plan.fits:
            return plan, None
    return None, plan


def _with_virtual(plan: RunPlan) -> RunPlan:
    """With virtual stages where a pipeline waits and they fit."""
    best, layout = plan, plan.layout
    waits = plan.time.parts["train/pipeline bubble"]
    if waits < _WAITS * plan.time.total:
        return plan
    each = plan.models.student.layers // layout.pipeline
    for virtual in (v for v in (2, 4) if each % v == 0):
        tried = replace(plan, layout=replace(layout, virtual=virtual))
        if tried.fits and tried.time.total < best.time.total:
            best = tried
    return best
