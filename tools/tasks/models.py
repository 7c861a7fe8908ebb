"""A task's tiny student and teacher: random parameters, then `scope-megatron train` with kd.

    python -m tools.tasks.models --task countdown --data DIR --out DIR

The teacher learns until it knows its part of the task; it never sees the part left out. The student
sees everything, is smaller, and is stopped when it gets some of the problems right.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from scope_megatron import outputs
from tools.make_tiny_models import Recipe, random_model
from tools.tasks.table import TASKS, task_named

REPOSITORY = Path(__file__).resolve().parents[2]
STUDENT, TEACHER = "student", "teacher"
SEQUENCES = 128  # per supervised step


def _recipe(hidden: int, layers: int, lr: float, schedule: str, steps: int) -> Recipe:
    return Recipe(
        "",
        hidden,
        layers,
        hidden // 32,
        3 * hidden,
        lr=lr,
        schedule=schedule,
        steps=steps,
        seed=0,
        accuracy=(0.0, 1.0),
        numbers=True,
    )


RECIPES = {
    "countdown": {
        STUDENT: _recipe(128, 2, lr=3e-3, schedule="constant", steps=700),
        TEACHER: _recipe(128, 3, lr=3e-3, schedule="cosine", steps=700),
    },
    "walk": {
        STUDENT: _recipe(64, 2, lr=3e-3, schedule="constant", steps=400),
        TEACHER: _recipe(128, 3, lr=3e-3, schedule="cosine", steps=900),
    },
}


TRAINED = tuple(name for name, task in TASKS.items() if task.family in RECIPES)


@dataclass(frozen=True)
class Supervised:
    """One supervised training: which model, from which rows."""

    role: str
    recipe: Recipe
    data: Path
    max_prompt_tokens: int


def supervised_settings(job: Supervised, start: Path, output: Path) -> dict[str, Any]:
    """The `kd` run that trains one model from ``start``, in one process and without an engine."""
    return {
        "seed": job.recipe.seed,
        "output_dir": str(output),
        "algorithm": {"name": "kd"},
        "model": {"student": str(start), "dtype": "float32"},
        "data": {
            "train": str(job.data / f"{job.role}.jsonl"),
            "max_prompt_tokens": job.max_prompt_tokens,
        },
        "optimizer": {
            "lr": job.recipe.lr,
            "schedule": job.recipe.schedule,
            "warmup_steps": min(100, job.recipe.steps // 4),
        },
        "train": {
            "steps": job.recipe.steps,
            "microbatch_tokens": 4096,
            "batch_sequences": SEQUENCES,
        },
        "evaluation": {"before": False, "after": False},
        "checkpoint": {"at_end": False},
        "logging": {"tensorboard": False, "progress": False, "rollouts": {"every": 0}},
    }


def train_supervised(job: Supervised, work: Path, out: Path) -> None:
    """Random parameters -> `scope-megatron train` -> ``out``, a Hugging Face directory."""
    start, output = work / f"{job.role}-random", work / f"{job.role}-run"
    for stale in (start, output):
        shutil.rmtree(stale, ignore_errors=True)
    random_model(job.recipe, start)
    config = work / f"{job.role}.yaml"
    config.write_text(yaml.safe_dump(supervised_settings(job, start, output)))
    command = [sys.executable, "-m", "scope_megatron", "train", str(config)]
    subprocess.run(command, check=True, cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    shutil.rmtree(out, ignore_errors=True)
    shutil.move(output / outputs.HF, out)


def main(
    task: Annotated[str, typer.Option(help=f"One of {', '.join(TRAINED)}.")],
    data: Annotated[Path, typer.Option(help="Directory that tools.tasks.write has written.")],
    out: Annotated[Path, typer.Option(help="Directory for student/ and teacher/.")],
    only: Annotated[str, typer.Option(help="Make only this: student or teacher.")] = "",
    steps: Annotated[int, typer.Option(help="Supervised steps; 0: the recipe's.")] = 0,
) -> None:
    """Train a task's student and teacher."""
    known = task_named(task)
    if task not in TRAINED:
        raise ValueError(f"--task: {task} has the shipped models in assets/; nothing to train")
    out.mkdir(parents=True, exist_ok=True)
    for role, recipe in RECIPES[known.family].items():
        if only in ("", role):
            recipe = replace(recipe, steps=steps or recipe.steps)
            job = Supervised(role, recipe, data.resolve(), known.max_prompt_tokens)
            train_supervised(job, out.resolve(), out.resolve() / role)
            typer.echo(f"wrote {out / role}")


if __name__ == "__main__":
    typer.run(main)
