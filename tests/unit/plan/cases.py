"""Plans to ask questions of."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from scope_megatron.family import ModelShape
from scope_megatron.instruments.plan.activations import build_for
from scope_megatron.instruments.plan.estimate import RunPlan
from scope_megatron.instruments.plan.facts.figures import Efficiencies, find_gpu
from scope_megatron.instruments.plan.facts.known import KNOWN
from scope_megatron.instruments.plan.layout import RunLayout
from scope_megatron.instruments.plan.models import Models
from scope_megatron.instruments.plan.workload import ResponseLengths, Workload


def plan_of(
    student: str = "Qwen/Qwen2.5-1.5B",
    teacher: str | None = "Qwen/Qwen2.5-7B",
    gpu: str = "h100",
    exact: bool = False,
    work: dict[str, Any] | None = None,
    **layout: Any,
) -> RunPlan:
    """512 prompts x 8 responses of 4,000 tokens on average, at most 12,288."""
    shapes = [ModelShape.of(KNOWN[name]) if name else None for name in (student, teacher)]
    assert shapes[0] is not None
    models = Models(shapes[0], shapes[1], build_for(True, True, shapes[0]), exact)
    lengths = ResponseLengths.lognormal(4000, 0.8, 12288, "test")
    done = Workload(4096, 512, 512, lengths, 12288, 16384)
    return RunPlan(
        models,
        RunLayout(**({"microbatch": 16384, "engine_share": 0.6} | layout)),
        replace(done, **(work or {})),
        find_gpu(gpu),
        Efficiencies(),
    )
