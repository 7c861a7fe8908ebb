"""Whether SCOPE's weights have work on a task, measured before any training.

    python -m tools.tasks.spread --task countdown --data DIR --student DIR --teacher DIR

Three steps of `scope` whose learning rate moves nothing, and evaluations of both models. Printed:
their accuracies on the easy and the hard problems, mean perplexities and effective sample sizes on
both paths, and what the study asks of a task: accuracy 20 to 50 %, perplexity of correct responses
above 1.2, effective sample sizes below 0.9. Exit code 1 when one is missed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from scope_megatron import outputs
from tools.tasks.family import EASY, HARD, Task
from tools.tasks.models import REPOSITORY
from tools.tasks.table import task_named

STEPS, SAMPLES = 3, 16
LIMITS = (  # name, metric, lowest, highest
    ("student's accuracy", "accuracy", 0.2, 0.5),
    ("perplexity of correct responses", "perplexity/student_correct", 1.2, float("inf")),
    ("sample size, student's weights", "weight/student_ess", 0.0, 0.9),
    ("sample size, teacher's weights", "weight/teacher_ess", 0.0, 0.9),
)


def spread_settings(
    task: Task, data: Path, student: Path, teacher: Path, out: Path, temperature: float
) -> dict[str, Any]:
    """A run of ``STEPS`` steps that leaves the student as it is."""
    settings: dict[str, Any] = {
        "output_dir": str(out),
        "model": {"student": str(student), "teacher": str(teacher), "dtype": "float32"},
        "data": {
            "train": str(data / "train.jsonl"),
            "eval": {split: str(data / f"{split}.jsonl") for split in (EASY, HARD)},
            "max_prompt_tokens": task.max_prompt_tokens,
        },
        "rollout": {
            "prompts_per_step": 64,
            "group_size": 8,
            "max_response_tokens": task.max_response_tokens,
            "temperature": temperature,
            "engine": {"kv_cache_gib": 0.1},
        },
        "optimizer": {"lr": 1e-12},
        "train": {"steps": STEPS, "microbatch_tokens": 4096},
        "evaluation": {"samples": SAMPLES, "after": False},
        "checkpoint": {"at_end": False, "export_hf": False},
        "logging": {"tensorboard": False, "progress": False, "rollouts": {"every": 0}},
    }
    if task.verifier:
        settings["verifier"] = {"name": "custom", "custom": task.verifier}
    return settings


def measure(settings: dict[str, Any], work: Path) -> dict[str, float]:
    """Means over the run's steps, and the accuracies of its evaluation."""
    config = work / "spread.yaml"
    config.write_text(yaml.safe_dump(settings))
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "scope_megatron", "train", str(config)]
    subprocess.run(command, check=True, cwd=REPOSITORY, env=environment, stdout=subprocess.DEVNULL)
    lines = (Path(settings["output_dir"]) / outputs.METRICS).read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    names = set().union(*rows)
    found = {name: [row[name] for row in rows if name in row] for name in names}
    means = {name: sum(values) / len(values) for name, values in found.items()}
    means["accuracy"] = means.get("reward/mean", 0.0)
    return means


def main(
    task: Annotated[str, typer.Option(help="countdown, walk or chains.")],
    data: Annotated[Path, typer.Option(help="Directory that tools.tasks.write has written.")],
    student: Annotated[Path, typer.Option(help="Hugging Face directory.")],
    teacher: Annotated[Path, typer.Option(help="Hugging Face directory.")],
    temperature: Annotated[float, typer.Option(help="Of the rollouts.")] = 1.0,
) -> None:
    """Print what a task's models start with, and whether it is enough for the study."""
    known = task_named(task)
    with tempfile.TemporaryDirectory(prefix="spread-") as name:
        work = Path(name)
        paths = (data.resolve(), student.resolve(), teacher.resolve())
        ours = measure(spread_settings(known, *paths, work / "run", temperature), work)
        swapped = (paths[0], paths[2], paths[2])  # the teacher in the student's place
        theirs = measure(spread_settings(known, *swapped, work / "teacher", temperature), work)
    for label, values in (("student", ours), ("teacher", theirs)):
        told = [f"{label}: rollouts right {100 * values['accuracy']:.1f} %"]
        for split in (EASY, HARD):
            average, passed = (values[f"eval/{split}/{k}@{SAMPLES}"] for k in ("avg", "pass"))
            told.append(
                f"{split} Avg@{SAMPLES} {100 * average:.1f} Pass@{SAMPLES} {100 * passed:.1f}"
            )
        typer.echo(", ".join(told))
    for side in ("student_incorrect", "teacher_incorrect"):
        typer.echo(f"perplexity {side.replace('_', ' on ')}: {ours[f'perplexity/{side}']:.3f}")
    missed = 0
    for label, metric, low, high in LIMITS:
        met = low <= ours[metric] <= high
        missed += not met
        typer.echo(f"{label}: {ours[metric]:.3f} {'meets' if met else 'MISSES'} the requirement")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    typer.run(main)
