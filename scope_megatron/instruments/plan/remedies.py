"""Which settings would make a run fit, the cheapest in time first."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from scope_megatron.instruments.plan.estimate import RunPlan
from scope_megatron.instruments.plan.layout import RunLayout, layout_problems

MOST_CHANGES = 3  # at once
SHORTEST_PART = 4096  # tokens of the longest sequence that a context-parallel rank has at least
HEADROOM = 0.03  # of a GPU's memory that a layout of our choice leaves free


@dataclass(frozen=True)
class Remedy:
    """Settings that make the run fit, with the peak and the step that they give."""

    settings: tuple[str, ...]
    plan: RunPlan

    def slower(self, than: RunPlan) -> float:
        """Share of the step's time that it adds."""
        return self.plan.time.total / than.time.total - 1


def remedies(plan: RunPlan, most: int = 5) -> list[Remedy]:
    """The fewest changes that are enough, the fastest first; none where nothing helps."""
    changes = list(_changes(plan))
    for count in range(1, MOST_CHANGES + 1):
        found = []
        for chosen in combinations(changes, count):
            keys = {text.partition("=")[0] for text, _ in chosen}
            if len(keys) < count:
                continue
            layout = plan.layout
            for _, change in chosen:
                layout = replace(layout, **change)
            layout = _filled(layout, plan.layout.ranks)
            candidate = replace(plan, layout=layout)
            if _runs(candidate) and candidate.fits:
                found.append(Remedy(tuple(_told(chosen, plan.layout, layout)), candidate))
        if found:
            return sorted(found, key=lambda remedy: remedy.plan.time.total)[:most]
    return []


def _told(
    chosen: tuple[tuple[str, dict[str, Any]], ...], before: RunLayout, after: RunLayout
) -> Iterator[str]:
    yield from (text for text, _ in chosen)
    if after.data != before.data:
        yield f"parallel.data={after.data}"


def _filled(layout: RunLayout, ranks: int) -> RunLayout:
    """Replicas for the ranks that larger cuts leave."""
    cut = layout.tensor * layout.pipeline * layout.context
    return replace(layout, data=max(1, ranks // cut))


def _runs(plan: RunPlan) -> bool:
    layout = plan.layout
    problems = layout_problems(layout, plan.models.student, plan.models.teachers)
    whole = plan.work.prompts % layout.data == 0
    return whole and next(problems, None) is None


def _changes(plan: RunPlan) -> Iterator[tuple[str, dict[str, Any]]]:
    layout, work = plan.layout, plan.work
    movable = bool(plan.models.teachers) and not layout.teachers  # several say each their own
    ways: list[tuple[str, dict[str, Any], bool]] = [
        ("optimizer.distributed=true", {"distributed": True}, not layout.distributed),
        (
            "parallel.sequence=true",
            {"sequence": True},
            layout.tensor > 1 and not layout.sequence,
        ),
        (
            "optimizer.offload=rollout",
            {"optimizer_offload": True},
            work.samples and not layout.optimizer_offload,
        ),
        (
            "teacher.offload=cpu",
            {"teacher_offload": True},
            movable and not layout.teacher_offload,
        ),
        (
            "parallel.recompute=selective",
            {"recompute": "selective"},
            layout.recompute == "none",
        ),
        (
            "parallel.recompute=full",
            {"recompute": "full", "recompute_layers": None},
            layout.recompute != "full" or layout.recompute_layers is not None,
        ),
        (
            f"train.microbatch_tokens={work.longest}",
            {"microbatch": work.longest},
            layout.microbatch > work.longest,
        ),
    ]
    yield from ((text, change) for text, change, useful in ways if useful)
    if work.samples:
        share = best_share(plan)
        if share and share != layout.engine_share:
            key = "rollout.engine.gpu_memory_utilization"
            yield f"{key}={share:g}", {"engine_share": share}
        if layout.engine_tensor < layout.tensor:
            key = f"rollout.engine.tensor={layout.tensor}"
            yield key, {"engine_tensor": layout.tensor}
    yield from _cuts(plan, movable)


def _cuts(plan: RunPlan, movable: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Twice a size of the student's, and a teacher that is cut over more GPUs than the student."""
    layout, node = plan.layout, plan.gpu.per_node
    for name in ("tensor", "pipeline"):
        size = 2 * getattr(layout, name)
        if layout.data % 2 == 0 and (name == "pipeline" or size <= node):
            change: dict[str, Any] = {name: size}
            if name == "tensor":
                change["sequence"] = True
            more = " parallel.sequence=true" if name == "tensor" else ""
            yield f"parallel.{name}={size}{more}", change
    if layout.data % 2 == 0 and plan.work.longest >= 2 * SHORTEST_PART * layout.context:
        size = 2 * layout.context
        pad = 2 * size * (layout.tensor if layout.sequence else 1) - 1
        microbatch = max(layout.microbatch, plan.work.longest + pad)
        text = f"parallel.context={size} train.microbatch_tokens={microbatch}"
        yield text, {"context": size, "microbatch": microbatch}
    for size in (2 * layout.of_teacher.tensor, min(node, layout.ranks)) if movable else ():
        if layout.of_teacher.tensor < size <= min(node, layout.ranks):
            text = f"teacher.parallel.tensor={size} teacher.parallel.sequence=true"
            own = {"teacher_tensor": size, "teacher_pipeline": 1, "teacher_sequence": True}
            yield text, own | {"teacher_context": 1, "teacher_expert": 1}


def best_share(plan: RunPlan) -> float:
    """The largest share of the memory that leaves room for what else is there while the engine is
    awake, and HEADROOM, rounded down to a fiftieth; 0: none does."""
    engine = ("engine parameters", "engine graphs", "kv cache")
    free = 1.0 - HEADROOM
    for rank in plan.ranks:
        phases = rank.phases.values() if not plan.layout.engine_sleeps else [rank.phases["rollout"]]
        for held in phases:
            rest = sum(size for name, size in held.items() if name not in engine)
            rest += held.get("engine graphs", 0) and _GRAPHS
            free = min(free, 1 - HEADROOM - rest / plan.gpu.memory)
    return max(0.0, math.floor(min(free, 0.92) * 50) / 50)


_GRAPHS = int(0.6 * 2**30)  # captured beyond the share that vLLM is given
