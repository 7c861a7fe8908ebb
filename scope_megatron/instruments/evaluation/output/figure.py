"""Pass@k against k, a panel per set: the paper's figure 4."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scope_megatron.disk import write_atomically
from scope_megatron.instruments.evaluation.output.results import Accuracies, Results
from scope_megatron.instruments.report.figure import (
    BLUE,
    GREEN,
    ORANGE,
    PINK,
    RED,
    SKY,
    SOFT,
    STYLE,
)

COLORS = (BLUE, ORANGE, GREEN, PINK, RED, SKY)
PASS_AT_K = "pass_at_k.png"


def draw_pass_at_k(evaluations: Sequence[tuple[str, Results]], path: Path) -> None:
    """Draw (label, results) of evaluations with the same sets and write a PNG.

    Solid: unbiased, with the 95% interval as a band. Dashed: the reference code's estimator.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [entry.scores.name for entry in evaluations[0][1].sets]
    columns = min(3, len(names))
    rows = math.ceil(len(names) / columns)
    style: Any = {**matplotlib.rcParamsDefault, **STYLE}  # a user's matplotlibrc has no say
    image = io.BytesIO()
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(5.4 * columns, 4.4 * rows + 0.5), dpi=100, layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(rows, columns, squeeze=False)
        for place, axes in enumerate(grid.flat):
            if place >= len(names):
                axes.set_visible(False)
                continue
            for (label, results), color in zip(evaluations, _colors(len(evaluations)), strict=True):
                found = [s.scores for s in results.sets if s.scores.name == names[place]]
                if found:
                    _curves(axes, found[0], label, color)
            _finish(axes, names[place])
        handles, labels = grid.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=len(labels))
        note = "dashed: k draws with replacement (reference code); band: 95% over problems"
        figure.supxlabel(note, fontsize=9.5, color=SOFT)
        figure.savefig(image, format="png")
    write_atomically(path, image.getvalue())


def _colors(count: int) -> list[str]:
    return [COLORS[i % len(COLORS)] for i in range(count)]


def _curves(axes: Any, scores: Accuracies, label: str, color: str) -> None:
    ks = [entry.k for entry in scores.passes]
    unbiased = [entry.unbiased for entry in scores.passes]
    low, high = [100 * e.low for e in unbiased], [100 * e.high for e in unbiased]
    axes.fill_between(ks, low, high, color=color, alpha=0.15, linewidth=0)
    axes.plot(ks, [100 * e.value for e in unbiased], color=color, marker="o", ms=5, label=label)
    replaced = [100 * entry.with_replacement.value for entry in scores.passes]
    axes.plot(ks, replaced, color=color, linestyle="--", linewidth=1.2)


def _finish(axes: Any, name: str) -> None:
    ticks = sorted({int(k) for line in axes.get_lines() for k in line.get_xdata()})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_title(name)
    axes.set_xlabel("k")
    axes.set_ylabel("Pass@k, %")
