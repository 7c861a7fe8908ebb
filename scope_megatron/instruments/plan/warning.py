"""The line that check and launch print of a run that will not fit."""

from __future__ import annotations

from dataclasses import replace

from scope_megatron.config import Config, ConfigError
from scope_megatron.instruments.plan.estimate import RunPlan, models_of
from scope_megatron.instruments.plan.facts.figures import GPUS, Efficiencies, GpuFigures, find_gpu
from scope_megatron.instruments.plan.layout import layout_of
from scope_megatron.instruments.plan.remedies import remedies
from scope_megatron.instruments.plan.workload import workload_of
from scope_megatron.machine import Machine, visible_gpus

_GIB = 2**30


def gpu_of(machine: Machine, name: str | None) -> GpuFigures | None:
    """The GPU that a run is for: the one named, else this machine's; None where nobody knows."""
    if name is not None:
        return find_gpu(name)
    if machine.device != "cuda" or not machine.here:
        return None
    for gpu in visible_gpus()[:1]:
        if not gpu.total_mib:
            return None
        try:
            known = find_gpu(gpu.name)
        except ConfigError:
            known = GPUS["a100"]  # only its memory counts here, which the driver told
        return replace(known, name=gpu.name, memory=int(gpu.total_mib * 2**20))
    return None


def memory_warning(config: Config, gpu: GpuFigures | None) -> str | None:
    """`parallel: ... needs ... ; set ...` of a run that will not fit in a GPU; None if it will, or
    if nobody can say."""
    if gpu is None or config.platform.device != "cuda":
        return None
    try:
        models, _ = models_of(config)
        work = workload_of(config)
    except ConfigError:
        return None
    plan = RunPlan(models, layout_of(config), work, gpu, Efficiencies())
    if plan.fits:
        return None
    ways = remedies(plan, most=1)
    fix = " ".join(ways[0].settings) if ways else "a larger parallel.tensor or more GPUs"
    return f"the run will probably not fit: {shortage(plan)}; try {fix}; `plan` says more"


def shortage(plan: RunPlan) -> str:
    """`84.2 GiB of 79.1 (H100) in train on pipeline stage 0`."""
    rank, memory = plan.fullest, plan.gpu.memory / _GIB
    if rank.peak > plan.gpu.memory:
        return (
            f"{rank.peak / _GIB:.1f} GiB of {memory:.1f} ({plan.gpu.name}) in {rank.moment} on "
            f"pipeline stage {rank.stage}"
        )
    return (
        f"rollout.engine.gpu_memory_utilization {plan.layout.engine_share:g} is "
        f"{plan.cache_missing / _GIB:.1f} GiB short of the engine's parameters and one sequence of "
        f"{plan.work.longest} tokens ({plan.gpu.name})"
    )
