"""Write a task's files: the same seed writes the same files.

python -m tools.tasks.write --task countdown --out runs/study/countdown/data

train.jsonl      prompts for rollouts: easy and hard, shuffled
tuning.jsonl     held out, for choosing learning rates and nothing else
easy.jsonl       held out, for evaluation
hard.jsonl
student.jsonl    worked responses to the prompts that are not held out, for supervised training
teacher.jsonl    the right ones alone, without the part (or most of the part) that it never sees
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Annotated

import typer

from tools.make_arithmetic import write_jsonl
from tools.tasks.family import EASY, HARD, Problem, Task
from tools.tasks.table import TASKS, task_named

TRAIN, HELD_OUT, TUNING, SUPERVISED = 4096, 100, 100, 40_000
_BARE = ("prompt", "answer", "data_source")


def write_rollout_files(task: Task, out: Path, seed: int) -> set[str]:
    """train, tuning, easy and hard into ``out``, no prompt in two of them; returns the held-out."""
    rng = random.Random(f"{seed}:{task.family}")
    taken: set[str] = set()
    out.mkdir(parents=True, exist_ok=True)
    for split in (EASY, HARD):
        write_jsonl(out / f"{split}.jsonl", _different(task, rng, taken, HELD_OUT, split))
    write_jsonl(out / "tuning.jsonl", _different(task, rng, taken, TUNING))
    held_out = set(taken)
    write_jsonl(out / "train.jsonl", _different(task, rng, taken, TRAIN))
    return held_out


def write_supervised_files(
    task: Task, out: Path, seed: int, held_out: set[str], count: int = SUPERVISED
) -> None:
    """student and teacher into ``out``: ``count`` rows each, whose prompts are not held out."""
    rng = random.Random(f"{seed}:{task.family}:supervised")
    glimpse = random.Random(f"{seed}:{task.name}:glimpses")
    student, teacher = list[Problem](), list[Problem]()
    while min(len(student), len(teacher)) < count:
        row = task.draw(rng, _split(task, rng))
        if row["prompt"] in held_out:
            continue
        row = row | {"response": task.solve(row, rng)}
        if len(student) < count:
            student.append(row)
        if len(teacher) < count and _teachable(task, row, glimpse):
            teacher.append(row)
    write_jsonl(out / "student.jsonl", student)
    write_jsonl(out / "teacher.jsonl", teacher)


def _teachable(task: Task, row: Problem, glimpse: random.Random) -> bool:
    seen = task.known(row) or glimpse.random() < task.glimpses
    return seen and task.right(row["response"], row["answer"])


def _split(task: Task, rng: random.Random) -> str:
    return HARD if rng.random() < task.hard_share else EASY


def _different(
    task: Task, rng: random.Random, taken: set[str], count: int, split: str | None = None
) -> list[Problem]:
    """``count`` problems that are not ``taken`` yet, without responses; they are taken now."""
    rows = list[Problem]()
    while len(rows) < count:
        row = task.draw(rng, split or _split(task, rng))
        if row["prompt"] not in taken:
            taken.add(row["prompt"])
            rows.append({name: row[name] for name in _BARE})
    return rows


def main(
    task: Annotated[str, typer.Option(help=f"One of {', '.join(TASKS)}.")],
    out: Annotated[Path, typer.Option(help="Directory of the files.")],
    seed: Annotated[int, typer.Option(help="The same seed writes the same files.")] = 1234,
) -> None:
    """Write a task's files."""
    held_out = write_rollout_files(task_named(task), out, seed)
    write_supervised_files(task_named(task), out, seed, held_out)
    typer.echo(f"wrote {out}")


if __name__ == "__main__":
    typer.run(main)
