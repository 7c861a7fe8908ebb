"""One picture of a run, drawn from its metrics.jsonl: ``report.png``.

Panels: accuracy, sizes of the two paths, perplexities, spread of the weights inside a path, time
per phase, and the loss with its gradient norm and the engine/trainer mismatch. A panel without
data is left out and named under the picture, so a run that was interrupted, or one of an
algorithm without a teacher, gives a report too.

Colours are Okabe and Ito's, distinguishable with every common colour blindness.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scope_megatron import outputs
from scope_megatron.disk import write_atomically
from scope_megatron.logging.logger import merge_values, parse_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
SKY, PINK, GREY, INK = "#56B4E9", "#CC79A7", "#999999", "#333333"
SOFT, MAGENTA = "#555555", "#A8487C"  # a darker PINK, for text

PHASE_COLORS = (
    ("rollout", SKY),
    ("verify", GREY),
    ("score", ORANGE),
    ("train", BLUE),
    ("sync", PINK),
)
PATHS = (("correct", GREEN), ("incorrect", RED), ("masked", GREY))
PERPLEXITIES = (
    ("perplexity/student_correct", "student on correct", GREEN),
    ("perplexity/student_incorrect", "student on incorrect", RED),
    ("perplexity/teacher_incorrect", "teacher on incorrect", BLUE),
)
SPREADS = (
    ("weight/student_spread", "student (correct)", GREEN),
    ("weight/teacher_spread", "teacher (incorrect)", BLUE),
)
STRIPS = (
    ("loss/total", "loss", INK),
    ("grad_norm", "gradient norm", BLUE),
    ("mismatch/mean_abs_prob", "engine / trainer mismatch (probability)", MAGENTA),
)
STYLE = {
    "font.size": 12,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "legend.frameon": False,
    "legend.fontsize": 10.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "lines.linewidth": 2,
}


@dataclass
class History:
    """The metrics of a run by step. ``skipped`` counts the lines that could not be read."""

    steps: dict[int, dict[str, float]] = field(default_factory=dict)
    skipped: int = 0
    nonfinite: dict[str, int] = field(default_factory=dict)  # name -> steps with NaN or inf

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of one metric, where it was logged and finite."""
        found = [(step, row[name]) for step, row in sorted(self.steps.items()) if name in row]
        return [step for step, _ in found], [value for _, value in found]

    def names(self) -> set[str]:
        return set().union(*self.steps.values())


def read_history(path: Path) -> History:
    """Read metrics.jsonl; lines of one step are merged, the later one wins.

    ValueError when the file is missing or holds no metric at all.
    """
    if not path.is_file():
        raise ValueError(f"no metrics to report: {path} does not exist")
    history = History()
    for line in path.read_bytes().splitlines():
        row = parse_line(line)
        if row is None:
            history.skipped += 1
            continue
        values = history.steps.setdefault(row.pop("step"), {})
        merge_values(row, values, history.nonfinite)
    if not any(history.steps.values()):
        raise ValueError(
            f"no metrics to report: {path} has no readable line ({history.skipped} skipped)"
        )
    return history


def write_report(run_dir: Path) -> Path:
    """Draw ``run_dir``/report.png (1400 x 900 pixels) and return its path.

    ValueError when ``run_dir``/metrics.jsonl is missing or holds no metric.
    """
    run_dir = Path(run_dir)
    history = read_history(run_dir / outputs.METRICS)

    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    path, image = run_dir / outputs.REPORT, io.BytesIO()
    style: Any = {**matplotlib.rcParamsDefault, **STYLE}  # a user's matplotlibrc has no say
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(14, 9), dpi=100)
        FigureCanvasAgg(figure)
        draw(figure, history, run_dir.resolve().name)
        figure.savefig(image, format="png")
    write_atomically(path, image.getvalue())
    return path


def draw(figure: Figure, history: History, name: str) -> None:
    """Title, the panels that have data on a grid, a note under them."""
    figure.text(0.02, 0.975, name, fontsize=20, weight="bold", va="top")
    figure.text(0.02, 0.925, headline(history), fontsize=13, va="top", color=SOFT)
    names = history.names()
    shown = [(title, paint) for title, needs, paint in PANELS if _any(names, needs)]
    left_out = [title for title, needs, _ in PANELS if not _any(names, needs)]
    note = footnote(history, left_out)
    if note:
        figure.text(0.02, 0.014, note, fontsize=11, color=SOFT, va="bottom")

    columns = {1: 1, 2: 2, 4: 2}.get(len(shown), 3)
    rows = math.ceil(len(shown) / columns) if shown else 1
    bottom, top = (0.045 if note else 0.01), 0.89
    width, height = 1 / columns, (top - bottom) / rows
    for index, (title, paint) in enumerate(shown):
        row, column = divmod(index, columns)
        paint(Cell(figure, column * width, top - (row + 1) * height, width, height), history, title)


def _any(names: set[str], wanted: tuple[str, ...]) -> bool:
    """Whether one of ``names`` is wanted: equal to one, or begins with one that ends in @."""
    return any(
        n == want or (want[-1] == "@" and n.startswith(want)) for n in names for want in wanted
    )


@dataclass
class Cell:
    """The part of the figure that belongs to one panel; all lengths in fractions of the figure.

    Margins are in pixels: the same on every grid, whatever the size of a cell.
    """

    figure: Figure
    x: float
    y: float
    width: float
    height: float

    def axes(
        self, title: str, unit: str, history: History, strip: int = 0, strips: int = 1
    ) -> Axes:
        """Axes of strip number ``strip`` of ``strips`` one above the other, 0 at the top."""
        from matplotlib.ticker import MaxNLocator

        across, up = self.figure.get_size_inches() * self.figure.dpi
        left, right, under, over, gap = 76 / across, 18 / across, 56 / up, 78 / up, 28 / up
        tall = (self.height - under - over - (strips - 1) * gap) / strips
        y = self.y + under + (strips - 1 - strip) * (tall + gap)
        axes = self.figure.add_axes((self.x + left, y, self.width - left - right, tall))
        if strip == 0:
            top = self.y + self.height - 14 / up
            self.figure.text(self.x + left, top, title, fontsize=14, weight="bold", va="top")
        first, last = min(history.steps), max(history.steps)
        pad = max(0.015 * (last - first), 0.3)
        axes.set_xlim(first - pad, last + pad)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10], integer=True))
        if strip == strips - 1:
            axes.set_xlabel("step")
        axes.set_ylabel(unit)
        return axes


def headline(history: History) -> str:
    """``80 steps · reward 0.05 → 0.83 · Avg@8 3.1 → 79.2`` of what is there."""
    last_step = max(history.steps)
    parts = [f"{last_step} step" + "s" * (last_step != 1)]
    steps, rewards = history.series("reward/mean")
    if len(steps) > 1:
        tenth = max(1, len(rewards) // 10)
        first, last = sum(rewards[:tenth]) / tenth, sum(rewards[-tenth:]) / tenth
        parts.append(f"reward {100 * first:.1f} → {100 * last:.1f} %")
    for name in sorted(history.names()):
        if name.startswith(("eval/avg@", "eval/pass@")):
            values = history.series(name)[1]
            label = name.removeprefix("eval/").capitalize()
            if len(values) > 1:
                parts.append(f"{label} {100 * values[0]:.1f} → {100 * values[-1]:.1f} %")
            else:
                parts.append(f"{label} {100 * values[0]:.1f} %")
    return "  ·  ".join(parts)


def footnote(history: History, left_out: list[str]) -> str:
    """Note under the panels: lines skipped, panels without data."""
    notes = []
    if left_out:
        notes.append("Not logged in this run: " + ", ".join(left_out).lower())
    if history.nonfinite:
        names = [
            f"{name} ({count} step{'s' * (count != 1)})"
            for name, count in sorted(history.nonfinite.items())
        ]
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        notes.append("NaN or infinite: " + ", ".join(names[:4]) + more)
    if history.skipped:
        lines = "line" + "s" * (history.skipped != 1)
        notes.append(f"{history.skipped} unreadable {lines} of {outputs.METRICS} skipped")
    return ".  ".join(notes)


def _line(axes: Axes, steps: list[int], values: list[float], color: str, label: str = "") -> None:
    """A line; many points as a faint line under their moving average, a lone point as a dot."""
    if len(steps) > 30:
        axes.plot(steps, values, color=color, alpha=0.3, linewidth=1)
        values = _smooth(values, len(steps) // 15)
    axes.plot(steps, values, color=color, label=label, marker="o" if len(steps) == 1 else None)


def _smooth(values: list[float], width: int) -> list[float]:
    """Centred moving average over about ``width`` values, fewer at the ends."""
    half = max(1, width // 2)
    windows = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def _accuracy(cell: Cell, history: History, title: str) -> None:
    axes = cell.axes(title, "%", history)
    steps, rewards = history.series("reward/mean")
    if steps:
        _line(axes, steps, [100 * reward for reward in rewards], SKY, "rollout reward")
    styles = {"eval/avg@": (BLUE, "o", "-"), "eval/pass@": (ORANGE, "s", "--")}
    top = max((100 * reward for reward in rewards), default=0.0)
    for name in sorted(history.names()):
        for prefix, (color, marker, line) in styles.items():
            if name.startswith(prefix):
                steps, values = history.series(name)
                values = [100 * value for value in values]
                label = name.removeprefix("eval/").capitalize()
                axes.plot(
                    steps, values, color=color, marker=marker, linestyle=line, label=label, ms=7
                )
                top = max(top, *values)
    axes.set_ylim(0, min(103, max(5.0, 1.15 * top)))
    _legend(axes)


def _stack(
    cell: Cell,
    history: History,
    title: str,
    unit: str,
    parts: list[tuple[str, str, str]],
) -> None:
    """Stacked areas of (metric, label, colour), over the steps that have any of them."""
    axes = cell.axes(title, unit, history)
    parts = [part for part in parts if part[0] in history.names()]
    steps = [s for s, row in sorted(history.steps.items()) if any(p[0] in row for p in parts)]
    layers = [[history.steps[s].get(name, 0.0) for s in steps] for name, _, _ in parts]
    labels, colors = [part[1] for part in parts], [part[2] for part in parts]
    if len(steps) == 1:
        base = 0.0
        for layer, label, color in zip(layers, labels, colors, strict=True):
            axes.bar(steps, layer, bottom=base, width=0.4, color=color, label=label)
            base += layer[0]
    else:
        axes.stackplot(steps, layers, labels=labels, colors=colors, alpha=0.85, linewidth=0)
    axes.set_ylim(0, 1.02 * max((sum(column) for column in zip(*layers, strict=True)), default=1))
    _legend(axes)


def _paths(cell: Cell, history: History, title: str) -> None:
    parts = [(f"path/{name}", name, color) for name, color in PATHS]
    _stack(cell, history, title, "responses", parts)


def _times(cell: Cell, history: History, title: str) -> None:
    parts = [(f"time/{name}", name, color) for name, color in PHASE_COLORS]
    _stack(cell, history, title, "seconds", parts)


def _lines(
    cell: Cell,
    history: History,
    title: str,
    unit: str,
    parts: tuple[tuple[str, str, str], ...],
) -> None:
    """One line per (metric, label, colour); a log scale when they span more than 5x."""
    from matplotlib.ticker import LogLocator

    axes = cell.axes(title, unit, history)
    everything: list[float] = []
    for name, label, color in parts:
        steps, values = history.series(name)
        if steps:
            _line(axes, steps, values, color, label)
            everything += values
    if min(everything) > 0 and max(everything) > 5 * min(everything):
        axes.set_yscale("log", subs=[])
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:.3g}")
    _legend(axes, columns=2)


def _perplexity(cell: Cell, history: History, title: str) -> None:
    _lines(cell, history, title, "mean perplexity", PERPLEXITIES)


def _spread(cell: Cell, history: History, title: str) -> None:
    _lines(cell, history, title, "largest / smallest weight", SPREADS)


def _health(cell: Cell, history: History, title: str) -> None:
    """Loss, gradient norm and mismatch as strips, one above the other."""
    strips = [strip for strip in STRIPS if strip[0] in history.names()]
    for index, (name, label, color) in enumerate(strips):
        axes = cell.axes(title, "", history, index, len(strips))
        steps, values = history.series(name)
        _line(axes, steps, values, color)
        axes.locator_params(axis="y", nbins=3)
        axes.yaxis.set_major_formatter("{x:.3g}")
        axes.tick_params(labelbottom=index == len(strips) - 1)
        axes.set_title(label, fontsize=11, weight="normal", pad=3, color=color)


def _legend(axes: Axes, columns: int = 5) -> None:
    """A legend between title and axes, where it covers no data."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(0, 1.0),
            ncols=columns,
            handlelength=1.0,
            handletextpad=0.4,
            columnspacing=1.1,
            borderaxespad=0.1,
            borderpad=0.2,
            labelspacing=0.2,
        )


Painter = Callable[[Cell, History, str], None]
# title, the metrics it can be drawn from (a name ending in @: all that begin so), how
PANELS: tuple[tuple[str, tuple[str, ...], Painter], ...] = (
    ("Accuracy", ("reward/mean", "eval/avg@", "eval/pass@"), _accuracy),
    ("Responses per path", tuple(f"path/{name}" for name, _ in PATHS), _paths),
    ("Time per step", tuple(f"time/{name}" for name, _ in PHASE_COLORS), _times),
    ("Perplexity", tuple(name for name, _, _ in PERPLEXITIES), _perplexity),
    ("Weight spread in a group", tuple(name for name, _, _ in SPREADS), _spread),
    ("Loss and health", tuple(name for name, _, _ in STRIPS), _health),
)
