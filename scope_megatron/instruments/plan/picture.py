"""A plan as a figure: memory by phase, stacked by tenant, and the time line of a step."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from scope_megatron.config.errors import ConfigError
from scope_megatron.instruments.plan.estimate import RunPlan
from scope_megatron.instruments.plan.memory import MEMORY_PHASES, TENANTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GIB = 2**30
_INK = "#333333"
# Okabe and Ito's colours, then lighter ones; a tenant keeps its colour in every picture
_COLORS = dict(
    zip(
        TENANTS,
        (
            *("#0072B2", "#56B4E9", "#9AD0F5", "#CFE8FA", "#E69F00", "#F5CE7A", "#009E73"),
            *("#7FCFB6", "#D55E00", "#F0A67C", "#F7D3BF", "#CC79A7", "#999999"),
        ),
        strict=True,
    )
)
_PHASE_COLORS = {
    "rollout": "#56B4E9",
    "score": "#E69F00",
    "train": "#0072B2",
    "sync": "#CC79A7",
    "other": "#999999",
}
_ENDINGS = (".png", ".pdf", ".svg")


def write_picture(plan: RunPlan, path: Path) -> None:
    """Draw the plan. Raises ConfigError for a path that cannot be written."""
    if path.suffix not in _ENDINGS:
        raise ConfigError(f"--picture: {path} is no picture; end it in {' or '.join(_ENDINGS)}")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 5.4), layout="constrained")
    bars, line = figure.subplots(2, 1, height_ratios=[5, 2 if plan.time.ahead else 1])
    _draw_memory(bars, plan)
    _draw_time(line, plan)
    figure.suptitle(f"{plan.layout.gpus} x {plan.gpu.name}: {plan.layout.text()}", fontsize=10)
    try:
        figure.savefig(path, dpi=130)
    except OSError as error:
        raise ConfigError(
            f"--picture: {path} cannot be written ({error.strerror}); give another path"
        ) from None


def _draw_memory(axes: Axes, plan: RunPlan) -> None:
    training, *sampling = plan.shown
    rows = [(phase, training.phases[phase]) for phase in MEMORY_PHASES]
    rows += [("sampling rank", rank.phases[rank.moment]) for rank in sampling]
    places = range(len(rows))
    left = [0.0] * len(rows)
    for tenant in TENANTS:
        sizes = [held.get(tenant, 0) / _GIB for _, held in rows]
        if any(sizes):
            axes.barh(places, sizes, left=left, color=_COLORS[tenant], label=tenant, height=0.66)
        left = [a + b for a, b in zip(left, sizes, strict=True)]
    capacity = plan.gpu.memory / _GIB
    axes.axvline(capacity, color=_INK, linestyle="--", linewidth=1)
    axes.text(capacity, -0.52, f" {capacity:.0f} GiB", va="center", color=_INK, fontsize=8)
    axes.set_yticks(
        list(places), [f"{name}\n{sum(held.values()) / _GIB:.1f} GiB" for name, held in rows]
    )
    axes.invert_yaxis()
    axes.set_xlabel(f"GiB on a rank of pipeline stage {training.stage}")
    axes.set_xlim(0, max(*left, capacity) * 1.1)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _draw_time(axes: Axes, plan: RunPlan) -> None:
    """One lane; two where engines sample the next step beside the training."""
    ahead, total = plan.time.ahead, plan.time.total
    starts = {0: 0.0, 1: 0.0}
    for phase, seconds in plan.time.phases.items():
        lane = 1 if ahead and phase == "rollout" else 0
        start = starts[lane]
        axes.barh([lane], [seconds], left=[start], color=_PHASE_COLORS[phase], height=0.8)
        if seconds > 0.06 * total:
            color = "white" if phase == "train" else _INK
            text = f"{phase}\n{seconds:.0f} s" if seconds >= 10 else f"{phase}\n{seconds:.1f} s"
            axes.text(
                start + seconds / 2, lane, text, ha="center", va="center", fontsize=8, color=color
            )
        starts[lane] += seconds
    axes.set_yticks([0, 1] if ahead else [], ["training", "next step"] if ahead else [])
    axes.set_xlim(0, total)
    axes.set_xlabel("seconds of a step")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
