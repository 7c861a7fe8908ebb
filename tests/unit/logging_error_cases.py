"""Wrong settings of `logging.rollouts`: the cases of test_config_errors.py."""

from __future__ import annotations

from collections.abc import Callable

from tests.support.config_run import leave

LOGGING_CASES: dict[str, tuple[Callable[[], None], list[str]]] = {
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
}
