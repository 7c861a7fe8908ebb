"""The best layouts for so many GPUs: every cut that the models allow, cheapest settings first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from scope_megatron.family import ModelShape
from scope_megatron.plan.estimate import RunPlan
from scope_megatron.plan.layout import RunLayout, layout_problems
from scope_megatron.plan.memory import Models
from scope_megatron.plan.remedies import HEADROOM, best_share
from scope_megatron.plan.workload import Workload

LONGEST_PIPELINE = 64


@dataclass(frozen=True)
class Offers:
    """Which sizes beyond the plainest are looked at."""

    context: bool = False
    virtual: bool = True
    teacher_offload: bool = False


@dataclass(frozen=True)
class Searched:
    """The best plans, and how many layouts were looked at."""

    plans: list[RunPlan]
    cuts: int
    nearest: RunPlan | None  # where nothing fits: what lacks least


def search_layouts(
    base: RunPlan, ranks: int, offers: Offers | None = None, most: int = 10
) -> Searched:
    """The fastest layouts of ``ranks`` GPUs that fit, one for each cut of the models."""
    offers = offers or Offers()
    found: list[RunPlan] = []
    nearest: RunPlan | None = None
    cuts = 0
    for cut in _cuts(base, ranks, offers):
        cuts += 1
        plan, missing = _settled(base, cut, offers)
        if plan is not None:
            found.append(plan)
        elif missing is not None and (nearest is None or missing.over < nearest.over):
            nearest = missing
    found.sort(key=lambda plan: plan.time.total)
    return Searched(found[:most], cuts, None if found else nearest)


def _cuts(base: RunPlan, ranks: int, offers: Offers) -> Iterator[RunLayout]:
    """Sizes that divide both models, the ranks and the prompts of a step."""
    models, work, node = base.models, base.work, base.gpu.per_node
    tensors = [t for t in _divisors(node) if t <= ranks]
    contexts = [c for c in (1, 2, 4, 8, 16) if c == 1 or offers.context]
    pipelines = [p for p in _divisors(models.student.layers) if p <= LONGEST_PIPELINE]
    for tensor, context, pipeline in product(tensors, contexts, pipelines):
        cut = tensor * context * pipeline
        if ranks % cut or work.prompts % (ranks // cut) or work.longest / context < 512 < context:
            continue
        data = ranks // cut
        for expert in _experts(models, tensor * context * data):
            virtuals = (1,)
            if offers.virtual and pipeline > 1:
                each = models.student.layers // pipeline
                virtuals = (1, *(v for v in (2, 4) if each % v == 0))  # type: ignore[assignment]
            for virtual in virtuals:
                layout = replace(
                    base.layout,
                    tensor=tensor,
                    context=context,
                    pipeline=pipeline,
                    data=data,
                    expert=expert,
                    virtual=virtual,
                    sequence=tensor > 1,
                    distributed=data * context > 1,
                    recompute="none",
                    recompute_layers=None,
                    optimizer_offload=False,
                    teacher_offload=False,
                    engine_tensor=1,
                )
                if next(layout_problems(layout, models.student, models.teachers), None) is None:
                    yield layout


def _experts(models: Models, stage: int) -> list[int]:
    shapes: list[ModelShape] = [models.student, *models.teachers]
    counts = [shape.experts for shape in shapes if shape.experts]
    if not counts:
        return [1]
    return [e for e in _divisors(min(counts)) if stage % e == 0 and _shares(counts, e)]


def _shares(counts: list[int], expert: int) -> bool:
    return all(count % expert == 0 for count in counts)


def _divisors(size: int) -> list[int]:
    return [n for n in range(1, size + 1) if size % n == 0]


def _settled(
    base: RunPlan, cut: RunLayout, offers: Offers
) -> tuple[RunPlan | None, RunPlan | None]:
    """(the fastest settings with which a cut fits, else the least that lacks)."""
    best: RunPlan | None = None
    nearest: RunPlan | None = None
    for microbatch in _microbatches(base.work, base.layout):
        for recompute, offload, away in product(
            ("none", "selective", "full"),
            (False, True),
            (False, True) if offers.teacher_offload and base.models.teacher else (False,),
        ):
            if offload and not base.work.samples:
                continue
            layout = replace(
                cut,
                microbatch=microbatch,
                recompute=recompute,  # type: ignore[arg-type]
                optimizer_offload=offload,
                teacher_offload=away,
            )
            plan, missing = _with_engine(replace(base, layout=layout))
            if plan is None:
                if missing is not None and (nearest is None or missing.over < nearest.over):
                    nearest = missing
                continue
            if best is None or plan.time.total < best.time.total:
                best = plan
            if not offload and not away:
                break  # dearer settings only cost time
    return best, nearest


def _microbatches(work: Workload, layout: RunLayout) -> list[int]:
    """The longest sequence, and twice and four times as much."""
    return [work.longest * n for n in (1, 2)]


def _with_engine(plan: RunPlan) -> tuple[RunPlan | None, RunPlan | None]:
    """(with the engine's size and share that sample fastest, else what lacks least)."""
    if not plan.work.samples:
        return (plan, None) if plan.fits else (None, plan)
    best: RunPlan | None = None
    whole = plan.layout.tensor  # of which the largest engine is
    share = best_share(replace(plan, layout=replace(plan.layout, engine_tensor=whole)))
    plan = replace(plan, layout=replace(plan.layout, engine_tensor=whole, engine_share=share))
    if share < 0.05 or plan.fullest.total("train") > (1 - HEADROOM) * plan.gpu.memory:
        return None, plan
    for engine in _divisors(plan.layout.tensor):
        layout = replace(plan.layout, engine_tensor=engine, engine_share=share)
        candidate = replace(plan, layout=layout)
        if candidate.fits and (best is None or candidate.time.total < best.time.total):
            best = candidate
    return best, None if best else plan
