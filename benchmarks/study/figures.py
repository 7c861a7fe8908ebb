"""Figures 3 (entropy and accuracy by step), 4 (Pass@k by k), 5 (ablations) and 6 (tau)."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.study.methods import ABLATIONS, BASE, MAIN, METHODS, SCOPE, TAUS, Method
from benchmarks.study.results import BOTH, TaskResults, present
from benchmarks.study.settings import SAMPLES, TEST
from scope_megatron.disk import write_atomically
from scope_megatron.instruments.report.figure import BLUE, GREEN, GREY, INK, ORANGE, RED, STYLE
from scope_megatron.rollout.statistics import powers_of_two

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = {"base": GREY, "kd": ORANGE, "grpo": GREEN, "opd": RED, "scope": BLUE}
CURVES = {
    "entropy/student_correct": "entropy on correct, nats",
    "entropy/student_incorrect": "entropy on incorrect, nats",
    "reward/mean": "rollouts right",
    f"eval/avg@{SAMPLES[TEST]}": "answers right",
}
_MAIN = tuple(method.name for method in MAIN)
Data = dict[str, Any]
Panel = Callable[["Axes", TaskResults], Data]


def draw_all(found: Sequence[TaskResults], out: Path) -> Data:
    """All figures into ``out``; returns what they show."""
    curves = [_curve(name, label) for name, label in CURVES.items()]
    return {
        "figure_3": _draw(found, curves, out / "figure_3.png"),
        "figure_4": _draw(found, [_pass_at_k], out / "figure_4.png"),
        "figure_5": _draw_bars(found, (SCOPE, *ABLATIONS), out / "figure_5.png"),
        "figure_6": _draw_bars(found, (TAUS[0], SCOPE, TAUS[1]), out / "figure_6.png"),
    }


def _draw_bars(found: Sequence[TaskResults], methods: Sequence[Method], path: Path) -> Data:
    """Of the tasks that have more than one of these methods; no file where none has."""
    names = tuple(method.name for method in methods)
    some = [results for results in found if len(present(results, names)) > 1]
    return _draw(some, [_bars(methods)], path) if some else {}


def _draw(found: Sequence[TaskResults], panels: Sequence[Panel], path: Path) -> Data:
    """A row of panels for each task, as one PNG."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: Any = {**matplotlib.rcParamsDefault, **STYLE}  # a user's matplotlibrc has no say
    image, data = io.BytesIO(), Data()
    with matplotlib.rc_context(style):
        size = (5.2 * max(2, len(panels)), 3.9 * len(found) + 0.4)
        figure = Figure(figsize=size, dpi=80, layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(len(found), len(panels), squeeze=False)
        for results, row in zip(found, grid, strict=True):
            for panel, axes in zip(panels, row, strict=True):
                data.setdefault(results.task, {}).update(panel(axes, results))
                axes.set_title(results.task)
        entries = [axes.get_legend_handles_labels() for axes in grid.flat]
        named = {
            label: line
            for lines, labels in entries
            for line, label in zip(lines, labels, strict=True)
        }
        if named:
            figure.legend([*named.values()], [*named], loc="outside upper left", ncols=len(named))
        figure.savefig(image, format="png")
    write_atomically(path, image.getvalue())
    return data


def _short(method: str) -> str:
    return METHODS[method].label.split(" (")[0]


def _curve(name: str, label: str) -> Panel:
    """A metric by step, a line for each of the main methods, mean over seeds."""

    def paint(axes: Axes, results: TaskResults) -> Data:
        shown = Data()
        for method in present(results, _MAIN):
            steps, values = results.series(method, name)
            if name.startswith("eval/"):  # all begin with the base student
                start, first = results.series(BASE.name, name)
                steps, values = start + steps, first + values
            if steps and method != BASE.name:
                axes.plot(steps, values, color=COLORS[method], label=_short(method))
                shown[method] = [steps, [float(f"{value:.4g}") for value in values]]
        axes.set_xlabel("step")
        axes.set_ylabel(label)
        return {name: shown}

    return paint


def _pass_at_k(axes: Axes, results: TaskResults) -> Data:
    """Unbiased Pass@k on easy and hard together, with intervals."""
    shown = Data()
    ks = powers_of_two(SAMPLES[TEST])
    for method in present(results, _MAIN):
        found = [results.estimate(method, BOTH, k) for k in ks]
        points = [estimate for estimate in found if estimate is not None]
        color, label = COLORS[method], _short(method)
        axes.plot(ks, [100 * e.value for e in points], color=color, marker="o", ms=4, label=label)
        low, high = [100 * e.low for e in points], [100 * e.high for e in points]
        axes.fill_between(ks, low, high, color=color, alpha=0.12, linewidth=0)
        shown[method] = {
            k: [round(100 * v, 2) for v in (e.value, e.low, e.high)]
            for k, e in zip(ks, points, strict=True)
        }
    axes.set_xscale("log", base=2)
    axes.set_xticks(ks, [str(k) for k in ks])
    axes.minorticks_off()
    axes.set_xlabel("k")
    axes.set_ylabel("Pass@k, %")
    return {"pass_at_k": shown}


def _bars(methods: Sequence[Method]) -> Panel:
    """Avg@n of some methods on easy and hard together."""

    def paint(axes: Axes, results: TaskResults) -> Data:
        shown = Data()
        names = present(results, tuple(method.name for method in methods))
        for place, name in enumerate(names):
            estimate = results.estimate(name, BOTH, 1)
            assert estimate is not None
            value, low, high = (100 * v for v in (estimate.value, estimate.low, estimate.high))
            axes.barh(place, value, color=BLUE if name == SCOPE.name else GREY, height=0.6)
            axes.plot([low, high], [place, place], color=INK, linewidth=1.5)
            shown[name] = [round(v, 2) for v in (value, low, high)]
        labels = ["tau 1" if m is SCOPE and len(methods) == 3 else m.label for m in methods]
        wanted = [label for m, label in zip(methods, labels, strict=True) if m.name in names]
        axes.set_yticks(range(len(names)), wanted)
        axes.set_xlabel(f"Avg@{SAMPLES[TEST]}, %")
        return {"avg": shown}

    return paint
