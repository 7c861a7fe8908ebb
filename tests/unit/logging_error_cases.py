"""Wrong settings of what a run writes down, for test_config_errors.py."""

from __future__ import annotations

from collections.abc import Callable

from tests.support.config_run import leave

# name: (change of the files, overrides)
LOGGING_CASES: dict[str, tuple[Callable[[], None], list[str]]] = {
    "trace_of_one_number": (leave, ["logging.trace.steps=[3]"]),
    "trace_beyond_the_run": (leave, ["logging.trace.steps=[4,9]"]),
    "trace_backwards": (leave, ["logging.trace.steps=[3,2]"]),
    "trace_of_step_zero": (leave, ["logging.trace.steps=[0,2]"]),
    "trace_every_of_nothing": (leave, ["logging.trace.every=10"]),
    "trace_every_zero": (leave, ["logging.trace={steps: [1, 3], every: 0}"]),
    "rollouts_select_unknown": (leave, ["logging.rollouts.select=many"]),
    "rollouts_key_unknown": (leave, ["logging.rollouts.evry=5"]),
    "rollouts_every_negative": (leave, ["logging.rollouts.every=-1"]),
    "rollouts_groups_zero": (leave, ["logging.rollouts.groups=0"]),
    "rollouts_no_room": (leave, ["logging.rollouts.max_gib=0"]),
    "rollouts_many_alternatives": (leave, ["logging.rollouts.alternatives=50"]),
    "rollouts_alternatives_of_none": (
        leave,
        ["logging.rollouts.alternatives=5", "logging.rollouts.every=0"],
    ),
    "profile_beyond_the_run": (leave, ["profile.steps=[3,4]"]),
    "profile_of_no_step": (leave, ["profile.steps=[0]"]),
    "profile_of_words": (leave, ["profile.steps=all"]),
}
