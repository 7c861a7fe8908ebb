"""The tasks by name."""

from __future__ import annotations

from tools.tasks.chains import CHAINS
from tools.tasks.countdown import COUNTDOWN
from tools.tasks.family import Task
from tools.tasks.walk import WALK

TASKS: dict[str, Task] = {task.name: task for task in (COUNTDOWN, WALK, CHAINS)}


def task_named(name: str) -> Task:
    """ValueError for a name that is none."""
    if name not in TASKS:
        raise ValueError(f"--task: {name!r} is no task; give one of {', '.join(TASKS)}")
    return TASKS[name]
