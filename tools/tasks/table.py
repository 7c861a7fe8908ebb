"""The tasks by name; walk also with a teacher that knows something of everything, and each of the
two with a student that was stopped when it got one response in eight right."""

from __future__ import annotations

from dataclasses import replace

from tools.tasks.chains import CHAINS
from tools.tasks.countdown import COUNTDOWN
from tools.tasks.family import Task
from tools.tasks.walk import WALK

WALK_STRONG = replace(
    WALK, name="walk_strong", left_out=f"nine tenths of {WALK.left_out}", glimpses=0.1
)
WALK_HARD = replace(WALK_STRONG, name="walk_hard")
WALK_HARD_PART = replace(WALK, name="walk_hard_part")
TASKS: dict[str, Task] = {
    task.name: task for task in (COUNTDOWN, WALK, WALK_STRONG, WALK_HARD, WALK_HARD_PART, CHAINS)
}


def task_named(name: str) -> Task:
    """ValueError for a name that is none."""
    if name not in TASKS:
        raise ValueError(f"--task: {name!r} is no task; give one of {', '.join(TASKS)}")
    return TASKS[name]
