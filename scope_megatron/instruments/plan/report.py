"""A plan as data, and as tables in the terminal."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from scope_megatron.instruments.plan.estimate import RunPlan
from scope_megatron.instruments.plan.facts.shapes import NamedShape, total_parameters
from scope_megatron.instruments.plan.layout import RunLayout
from scope_megatron.instruments.plan.memory import MEMORY_PHASES, TENANTS, RankMemory, host_bytes
from scope_megatron.instruments.plan.remedies import Remedy
from scope_megatron.instruments.plan.search import Searched
from scope_megatron.instruments.plan.seconds.timing import placed_apart
from scope_megatron.instruments.plan.warning import shortage

_GIB = 2**30


def as_data(plan: RunPlan, named: list[NamedShape], ways: list[Remedy]) -> dict[str, Any]:
    """Everything of a plan, in bytes and seconds."""
    time = plan.time
    together = plan.work.samples and not plan.layout.sampling
    apart = placed_apart(time, plan.layout.ranks) if together else None
    return {
        "models": [
            {"name": n.name, "parameters": total_parameters(n.shape), "source": n.source}
            for n in named
        ],
        "gpu": asdict(plan.gpu),
        "gpus": plan.layout.gpus,
        "layout": asdict(plan.layout),
        "work": {
            "responses": plan.work.responses,
            "mean_response_tokens": plan.work.lengths.mean,
            "longest_response_tokens": plan.work.lengths.most,
            "mean_prompt_tokens": plan.work.prompt_tokens,
            "lengths": plan.work.lengths.source,
            "incorrect": plan.work.incorrect,
        },
        "fits": plan.fits,
        "over_bytes": plan.over,
        "peak_bytes": plan.fullest.peak,
        "peak_moment": plan.fullest.moment,
        "cache_tokens": plan.fullest.cache_tokens,
        "host_bytes": host_bytes(plan.models, plan.layout),
        "memory": [{"stage": rank.stage, "phases": rank.phases} for rank in plan.ranks],
        "remedies": [
            {
                "settings": list(way.settings),
                "peak_bytes": way.plan.fullest.peak,
                "seconds": way.plan.time.total,
            }
            for way in ways
        ],
        "seconds": time.phases,
        "seconds_by_part": time.parts,
        "seconds_per_step": time.total,
        "transfers": [
            asdict(t) | {"seconds": t.seconds(plan.gpu, plan.reached)} for t in time.transfers
        ],
        "tokens_per_second_and_gpu": plan.speed,
        "placement": "separate" if plan.layout.sampling else "colocated",
        "lag_steps": plan.layout.lag,
        "apart": None if apart is None else asdict(apart),
        "efficiencies": asdict(plan.reached),
    }


def show_plan(console: Console, plan: RunPlan, named: list[NamedShape], ways: list[Remedy]) -> None:
    """The plan as tables."""
    _show_head(console, plan, named)
    for rank in plan.shown:
        console.print(memory_table(rank))
    _show_verdict(console, plan, ways)
    console.print(time_table(plan))
    if plan.time.transfers:
        console.print(transfer_table(plan))
    _show_pace(console, plan)


def _show_head(console: Console, plan: RunPlan, named: list[NamedShape]) -> None:
    for place, one in enumerate(named):
        role = "teacher" if place else "student"
        size = total_parameters(one.shape) / 1e9
        console.print(f"{role}: {one.name}, {size:.2f} billion parameters ({one.source})")
    work, gpu = plan.work, plan.gpu
    console.print(f"{plan.layout.gpus} x {gpu.name} ({gpu.source})")
    console.print(f"layout: {plan.layout.text()}, microbatch {plan.layout.microbatch} tokens")
    console.print(
        f"a step: {work.responses} responses of {work.lengths.mean:.0f} tokens on average "
        f"({work.lengths.source}; at most {work.limit}), prompts of {work.prompt_tokens:.0f}, "
        f"{work.incorrect:.0%} incorrect"
    )
    console.print(f"efficiencies: {plan.reached.source}")


def memory_table(rank: RankMemory) -> Table:
    """GiB by tenant and phase; of a rank that only samples there is one."""
    phases = MEMORY_PHASES[:1] if rank.samples else MEMORY_PHASES
    where = "that only samples" if rank.samples else f"of pipeline stage {rank.stage}"
    table = Table(title=f"GiB on a rank {where}", title_justify="left")
    table.add_column("tenant")
    for phase in phases:
        table.add_column(phase, justify="right")
    for tenant in TENANTS:
        sizes = [rank.phases[phase].get(tenant, 0) for phase in phases]
        if any(sizes):
            table.add_row(tenant, *(f"{size / _GIB:.2f}" if size else "" for size in sizes))
    table.add_section()
    table.add_row("all", *(f"{rank.total(phase) / _GIB:.2f}" for phase in phases))
    return table


def _show_verdict(console: Console, plan: RunPlan, ways: list[Remedy]) -> None:
    memory = plan.gpu.memory / _GIB
    if plan.fits:
        peak = plan.fullest
        where = "on a rank that only samples" if peak.samples else f"most in {peak.moment}"
        cache = max(rank.cache_tokens for rank in plan.ranks)
        console.print(
            f"fits: {peak.peak / _GIB:.1f} GiB of {memory:.1f}, {where}"
            + (f"; the cache holds {cache:,} tokens" if cache else "")
        )
    else:
        _show_remedies(console, plan, ways)
    away = host_bytes(plan.models, plan.layout)
    if away:
        there = plan.gpu.host_memory / _GIB
        console.print(f"in host memory: {away / _GIB:.1f} GiB for each rank, of {there:.0f}")


def _show_remedies(console: Console, plan: RunPlan, ways: list[Remedy]) -> None:
    console.print(f"does not fit: {shortage(plan)}")
    for way in ways:
        settings = " ".join(way.settings)
        console.print(
            f"  {settings}: {way.plan.fullest.peak / _GIB:.1f} GiB, a step takes "
            f"{way.slower(plan):+.0%}"
        )
    if not ways:
        console.print("  no three settings mend it: more GPUs, larger ones, or --search")


def time_table(plan: RunPlan) -> Table:
    """Seconds by phase and part."""
    table = Table(title="seconds of a step", title_justify="left")
    for name in ("phase", "of it", "seconds"):
        table.add_column(name, justify="right" if name == "seconds" else "left")
    for phase, seconds in plan.time.phases.items():
        table.add_row(phase, "", f"{seconds:.1f}")
        for name, part in plan.time.parts.items():
            if name.startswith(f"{phase}/") and part >= 0.005:
                table.add_row("", name.partition("/")[2], f"{part:.2f}")
    table.add_section()
    table.add_row("all", "", f"{plan.time.total:.1f}")
    return table


def transfer_table(plan: RunPlan) -> Table:
    """Bytes that a rank sends, by collective and link."""
    table = Table(title="what a rank sends in a step", title_justify="left")
    for name in ("collective", "phase", "GB", "over", "seconds"):
        table.add_column(name, justify="right" if name in ("GB", "seconds") else "left")
    for transfer in plan.time.transfers:
        seconds = transfer.seconds(plan.gpu, plan.reached)
        row = (f"{transfer.sent / 1e9:.2f}", transfer.link, f"{seconds:.2f}")
        table.add_row(transfer.name, transfer.phase, *row)
    return table


def _show_pace(console: Console, plan: RunPlan) -> None:
    console.print(f"{plan.speed:,.0f} response tokens per second and GPU")
    decoding = plan.time.decoding
    if decoding is not None and decoding.seconds:
        console.print(
            f"sampling: {decoding.mean_slots:.0f} responses at once on average; "
            f"{decoding.tail_seconds / decoding.seconds:.0%} of its time with less than half of "
            "the most"
        )
    if not plan.work.samples:
        return
    if (ranks := plan.layout.sampling) > 0:
        pace = "one step ahead" if plan.layout.lag else "one after the other"
        console.print(f"placement: engines on {ranks} GPUs of their own, {pace}")
        return
    console.print("placement: engine and trainer on the same GPUs, one after the other; lag 0")
    apart = placed_apart(plan.time, plan.layout.ranks)
    if apart is not None:
        console.print(
            f"apart, with lag 1: {apart.seconds:.1f} s with {apart.engine_ranks} of "
            f"{plan.layout.ranks} GPUs for engines"
        )


def search_table(found: Searched) -> Table:
    """The best plans, one a row."""
    table = Table(title=f"{found.cuts} cuts of the models looked at", title_justify="left")
    for name in ("", "layout", "microbatch", "engine share", "peak GiB", "step s", "tok/s/GPU"):
        table.add_column(name, justify="left" if name == "layout" else "right")
    for number, plan in enumerate(found.plans, 1):
        table.add_row(
            str(number),
            plan.layout.text(),
            str(plan.layout.microbatch),
            f"{plan.layout.engine_share:g}" if plan.work.samples else "",
            f"{plan.fullest.peak / _GIB:.1f} ({plan.fullest.moment})",
            f"{plan.time.total:.1f}",
            f"{plan.speed:,.0f}",
        )
    return table


def layout_row(layout: RunLayout) -> dict[str, Any]:
    """A layout as data."""
    return asdict(layout) | {"text": layout.text()}
