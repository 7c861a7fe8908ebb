"""The tasks by name; of two there is one more with a teacher that knows something of everything."""

from __future__ import annotations

from dataclasses import replace

from tools.tasks.chains import CHAINS
from tools.tasks.countdown import COUNTDOWN
from tools.tasks.family import Task
from tools.tasks.walk import WALK

GLIMPSES = 0.1
STRONG = tuple(
    replace(
        task,
        name=f"{task.name}_strong",
        left_out=f"nine tenths of {task.left_out}",
        glimpses=GLIMPSES,
    )
    for task in (COUNTDOWN, WALK)
)
TASKS: dict[str, Task] = {task.name: task for task in (COUNTDOWN, WALK, CHAINS, *STRONG)}


def task_named(name: str) -> Task:
    """ValueError for a name that is none."""
    if name not in TASKS:
        raise ValueError(f"--task: {name!r} is no task; give one of {', '.join(TASKS)}")
    return TASKS[name]
