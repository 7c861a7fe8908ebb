"""What of a step's work was hidden behind other work: the ``overlap/`` metrics, defined here.

    sampling_hidden = hidden_s / min(engine_s + grading_s, beside_s)     of the shorter phase
        hidden_s = engine_s + grading_s - the training ranks' wait for that batch
        beside_s = what else the training ranks did in the step in which they asked for it
    teacher_hidden = ahead_s / scored_s          of the teacher's time on groups as they came
    grading_hidden = 1 - grading_s / graded_s    of the verifiers' time

All of ``sampling/`` and in seconds. A share is in [0, 1], and there where its denominator is not 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

SHARES = {
    "sampling": "sampling, or the training beside it if that is shorter",
    "teacher": "the teacher's scoring",
    "grading": "grading",
}
_WINDOW = 20  # steps that are spoken of together


def hidden_shares(values: Mapping[str, float]) -> dict[str, float]:
    """``overlap/NAME_hidden`` of a step, from its reduced ``sampling/`` metrics."""
    seconds = {
        name.removeprefix("sampling/"): value
        for name, value in values.items()
        if name.startswith("sampling/")
    }
    grading, graded = seconds.get("grading_s", 0.0), seconds.get("graded_s", 0.0)
    shorter = min(seconds.get("engine_s", 0.0) + grading, seconds.get("beside_s", 0.0))
    parts = {
        "sampling": (seconds.get("hidden_s", 0.0), shorter),
        "teacher": (seconds.get("ahead_s", 0.0), seconds.get("scored_s", 0.0)),
        "grading": (graded - grading, graded),
    }
    return {
        f"overlap/{name}_hidden": min(1.0, max(0.0, part / whole))
        for name, (part, whole) in parts.items()
        if whole > 0
    }


def hidden_line(series: Callable[[str], tuple[Any, Any]]) -> str | None:
    """`Hidden in the last 20 steps, on average: 93 % of sampling ..., 71 % of ...`; None without
    these metrics."""
    found, steps = [], 0
    for name, what in SHARES.items():
        values = series(f"overlap/{name}_hidden")[1][-_WINDOW:]
        if len(values):
            found.append(f"{100 * float(sum(values)) / len(values):.0f} % of {what}")
            steps = max(steps, len(values))
    return f"Hidden in the last {steps} steps, on average: {'; '.join(found)}." if found else None
