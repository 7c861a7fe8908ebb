"""Presets: settings of several sections that a single one stands for.

A setting that is given keeps its value; the preset fills in what was left out.
"""

from __future__ import annotations

from typing import Any

# What the published code computes, where it is not what this project computes by default. Each is a
# switch of its own; docs/reference_code.md says what it changes.
REFERENCE_CODE: dict[str, dict[str, Any]] = {
    "objective": {
        "student_weight": "reversed",
        "normalization": "microbatch_mean",
        "likelihood": "log",
        "teacher_gap": "old",
        "old_logprobs": "recompute",
    },
    "algorithm": {"clip_dual": 3.0, "kl_coef": 0.0},
    "optimizer": {"beta2": 0.999, "states": "parameters"},
    "verifier": {"name": "string"},
    "data": {"overlong": "cut"},
}


def with_preset(values: Any) -> Any:
    """The raw sections with what ``objective.preset`` stands for filled in."""
    sections = values if isinstance(values, dict) else {}
    objective = sections.get("objective")
    if not isinstance(objective, dict) or objective.get("preset") != "reference_code":
        return values
    filled = dict(sections)
    for name, settings in REFERENCE_CODE.items():
        given = filled.get(name)
        if given is None:
            given = {}
        if isinstance(given, dict):  # else the schema refuses it
            filled[name] = settings | given
    return filled
