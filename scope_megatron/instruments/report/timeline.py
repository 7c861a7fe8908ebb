"""One step as a picture: what each rank did when, of the run's trace: ``timeline.png``.

A rank has a row: the phases of its step, below them what they consist of, below that its other
threads. Waiting is hatched. The axis is seconds since the step began on the first rank.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scope_megatron import outputs
from scope_megatron.disk import write_atomically
from scope_megatron.instruments.report.figure import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PINK,
    RED,
    SKY,
    SOFT,
    STYLE,
)
from scope_megatron.trace.files import Trace, TracedSpan, merge, read_trace, traced_steps
from scope_megatron.trace.spans import STEP

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_RANKS = 16  # in the picture; as many of either kind where there are two
BEFORE, AFTER = 8, 2  # steps whose spans may reach into one: checkpoints, batches sampled ahead
WAIT = "#f0f0f0"
# kind of work: (colour, the spans that are of it)
KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "sampling": (SKY, ("rollout", "sample")),
    "grading": (GREEN, ("verify", "grade")),
    "scoring": (ORANGE, ("score", "score ahead", "teacher scores", "student scores")),
    "training": (BLUE, ("train", "forward and backward", "optimizer")),
    "parameters": (PINK, ("sync", "send parameters", "check parameters")),
    "evaluation": ("#B8A000", ("evaluate",)),
    "checkpoint": (RED, ("save", "snapshot")),
}
WAITING = "waiting"
_OF = {name: kind for kind, (_, names) in KINDS.items() for name in names}


def kind_of(one: TracedSpan) -> str:
    """What kind of work a span is: a key of :data:`KINDS`, ``waiting`` or ``other``."""
    if one.name.startswith("wait"):
        return WAITING
    if one.lane == "checkpoint":
        return "checkpoint"
    return _OF.get(one.name, "scoring" if one.name.endswith(" scores") else "other")


@dataclass
class Strip:
    """Spans one beside the other, in a rank's row."""

    label: str
    height: float
    spans: list[TracedSpan]


def strips(spans: Iterable[TracedSpan]) -> list[Strip]:
    """A rank's spans, by their begin, in strips from the top."""
    phases, parts, open_until = list[TracedSpan](), list[TracedSpan](), 0
    others: dict[str, list[TracedSpan]] = {}
    for one in spans:
        if one.lane != STEP:
            others.setdefault(one.lane, []).append(one)
        elif one.name == f"step {one.step}":
            continue
        elif one.begun < open_until:
            parts.append(one)
        else:
            phases.append(one)
            open_until = one.ended
    found = [Strip("", 1.0, phases), Strip("", 0.6, parts)]
    found += [Strip(lane, 0.5, others[lane]) for lane in sorted(others)]
    return [strip for strip in found if strip.spans]


def write_timeline(run_dir: Path, step: int | None = None) -> Path | None:
    """Gather the trace of ``run_dir`` in trace/trace.json and draw ``step`` of it (None: the last
    that was whole) as timeline.png; None where the run has no trace.

    Raises ValueError where the trace has no such step.
    """
    steps = traced_steps(run_dir)
    if step is not None and step not in steps:
        had = f"the trace has {step_ranges(steps)}" if steps else "the run has no trace"
        raise ValueError(f"--step: {step} cannot be drawn: {had}; logging.trace.steps says which")
    if merge(run_dir) is None or not steps:
        return None  # no trace, or the run ended within its first step
    chosen = steps[-1] if step is None else step
    path = run_dir / outputs.TIMELINE
    write_atomically(path, drawn_step(run_dir, chosen, run_dir.resolve().name))
    return path


def drawn_step(run_dir: Path, step: int, name: str) -> bytes:
    """One of the :func:`traced_steps` of the run ``name`` as a PNG, 1400 pixels wide."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    trace = read_trace(run_dir, range(step - BEFORE, step + AFTER + 1))
    assert trace is not None
    rows = chosen_ranks(trace, step)
    style: Any = {**matplotlib.rcParamsDefault, **STYLE, "axes.grid": False}
    image = io.BytesIO()
    with matplotlib.rc_context(style):
        tall = sum(sum(strip.height for strip in row) + 0.5 for row in rows.values())
        figure = Figure(figsize=(14, 1.9 + 0.38 * tall), dpi=100)
        FigureCanvasAgg(figure)
        paint_step(figure, trace, step, rows, name)
        figure.savefig(image, format="png")
    return image.getvalue()


def chosen_ranks(trace: Trace, step: int) -> dict[int, list[Strip]]:
    """The strips of the ranks that are drawn, within the time of ``step``."""
    begun, ended = trace.window(step)
    inside: dict[int, list[TracedSpan]] = {}
    for one in trace.spans:
        if one.ended > begun and one.begun < ended:
            inside.setdefault(one.rank, []).append(one)
    sampling = [r for r in sorted(inside) if "(samples" in trace.names.get(r, "")]
    training = [r for r in sorted(inside) if r not in sampling]
    half = MOST_RANKS // 2
    few = min(len(sampling), max(half, MOST_RANKS - len(training)))
    chosen = [*training[: MOST_RANKS - few], *sampling[:few]]
    return {rank: strips(inside[rank]) for rank in chosen}


def paint_step(
    figure: Figure, trace: Trace, step: int, rows: dict[int, list[Strip]], name: str
) -> None:
    """Title, a row for each rank, a legend, and a note on ranks that are left out and clocks."""
    begun, ended = trace.window(step)
    tall = figure.get_size_inches()[1]
    seconds = (ended - begun) / 1e6
    figure.text(0.015, 1 - 0.12 / tall, f"{name}: step {step}", fontsize=16, va="top")
    figure.text(
        0.985, 1 - 0.17 / tall, f"{seconds:.3g} s", fontsize=13, va="top", ha="right", color=SOFT
    )
    axes = figure.add_axes((0.15, 0.85 / tall, 0.835, 1 - 1.75 / tall))
    at, kinds = 0.0, set[str]()
    for rank, row in rows.items():
        middle = at + sum(strip.height for strip in row) / 2
        axes.text(
            -0.012, middle, _label(trace, rank), transform=axes.get_yaxis_transform(), ha="right",
            va="center", fontsize=10,
        )  # fmt: skip
        for strip in row:
            for one in strip.spans:
                kinds.add(kind_of(one))
                other = strip.height == 1.0 and one.step != step and kind_of(one) != WAITING
                said = f"{one.name} (step {one.step})" if other else one.name
                _bar(axes, one, (begun, ended), at, strip, said)
            at += strip.height
        at += 0.5
    axes.set_xlim(0, seconds)
    axes.set_ylim(at - 0.5 + 0.1, -0.1)
    axes.set_yticks([])
    axes.set_xlabel("seconds since the step began")
    _legend(axes, kinds)
    figure.text(0.015, 0.06 / tall, _note(trace, rows), fontsize=9.5, color=SOFT, va="bottom")


def _label(trace: Trace, rank: int) -> str:
    """`rank 3\\n(trains, node1)`."""
    said = trace.names.get(rank, f"rank {rank}")
    return said.replace(" (", "\n(", 1)


def _bar(
    axes: Axes, one: TracedSpan, window: tuple[int, int], at: float, strip: Strip, said: str
) -> None:
    """A span, clipped to the window, with what is ``said`` of it where there is room."""
    left, right = max(one.begun, window[0]), min(one.ended, window[1])
    start, width = (left - window[0]) / 1e6, (right - left) / 1e6
    kind = kind_of(one)
    share = (right - left) / max(1, window[1] - window[0])
    shape = _rectangle(start, at + 0.04, width, strip.height - 0.08, kind)
    if share < 0.004 and kind != WAITING:  # an edge would hide it
        shape.set_edgecolor(shape.get_facecolor())
    axes.add_patch(shape)
    size = 9.5 if strip.height == 1.0 else 8
    if share * 115 > len(said) * size / 9.5 + 1:
        ink = {WAITING: SOFT, "training": "white", "checkpoint": "white"}.get(kind, "black")
        axes.text(
            start + width / 2, at + strip.height / 2, said, ha="center", va="center",
            fontsize=size, color=ink, clip_on=True,
        )  # fmt: skip


def _rectangle(x: float, y: float, width: float, height: float, kind: str) -> Any:
    from matplotlib.patches import Rectangle

    if kind == WAITING:
        return Rectangle((x, y), width, height, facecolor=WAIT, edgecolor="#c4c4c4", hatch="///")
    color = KINDS[kind][0] if kind in KINDS else GREY
    return Rectangle((x, y), width, height, facecolor=color, edgecolor="white", linewidth=0.6)


def _legend(axes: Axes, kinds: set[str]) -> None:
    shown = [kind for kind in (*KINDS, "other", WAITING) if kind in kinds]
    axes.legend(
        [_rectangle(0, 0, 1, 1, kind) for kind in shown],
        shown,
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=len(shown),
        handlelength=1.2,
        columnspacing=1.3,
        labelcolor=INK,
    )


def _note(trace: Trace, rows: Sequence[int] | dict[int, list[Strip]]) -> str:
    ranks = {one.rank for one in trace.spans}
    parts = [f"{len(rows)} of {len(ranks)} ranks"] if len(rows) < len(ranks) else []
    said = sorted({said for rank, said in trace.clocks.items() if rank in rows})
    parts += [f"clocks: {', '.join(said)}"] if said != ["rank 0's clock"] else []
    parts.append(f"all steps: {outputs.TRACE}/trace.json, for ui.perfetto.dev or chrome://tracing")
    return ";  ".join(parts)


def step_ranges(steps: Sequence[int]) -> str:
    """`1 to 3, 7`."""
    parts: list[list[int]] = []
    for step in steps:
        if parts and step == parts[-1][-1] + 1:
            parts[-1].append(step)
        else:
            parts.append([step])
    shown = [f"{p[0]} to {p[-1]}" if len(p) > 1 else str(p[0]) for p in parts]
    return ", ".join(shown) or "none"
