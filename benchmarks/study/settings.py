"""The configuration of a run, and the fingerprint by which its row is known."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.study.methods import BASE, GROUP, KD, MAIN, PROMPTS, RESPONSES, STEPS, Method
from tools.tasks.family import EASY, HARD, Task

TEST, TUNING = "test", "tuning"
SAMPLES = {TEST: 32, TUNING: 16}  # answers per problem
LEVELS = {TEST: (EASY, HARD), TUNING: (TUNING,)}  # the sets that are evaluated
CURVE = 10  # steps between evaluations of the methods whose curves are drawn


@dataclass(frozen=True)
class Place:
    """Where a task's files are."""

    data: Path
    student: Path
    teacher: Path

    @property
    def taught(self) -> Path:
        """The teacher's own responses to the training prompts, for KD."""
        return self.data / "taught.jsonl"


def run_settings(
    task: Task, method: Method, place: Place, seed: int, lr: float, split: str
) -> dict[str, Any]:
    """Dotted settings of a run, but output_dir."""
    values: dict[str, Any] = {
        "seed": seed,
        "model.student": str(place.student),
        "model.teacher": str(place.teacher),
        "model.dtype": "float32",
        "data.train": str(place.taught if method is KD else place.data / "train.jsonl"),
        "data.eval": {name: str(place.data / f"{name}.jsonl") for name in LEVELS[split]},
        "data.max_prompt_tokens": task.max_prompt_tokens,
        "rollout.prompts_per_step": PROMPTS,
        "rollout.group_size": GROUP,
        "rollout.max_response_tokens": task.max_response_tokens,
        "rollout.temperature": 1.0,
        "rollout.engine.kv_cache_gib": 0.1,
        "optimizer.lr": lr,
        "train.steps": STEPS,
        "train.microbatch_tokens": 4096,
        "evaluation.samples": SAMPLES[split],
        "evaluation.before": False,
        "evaluation.every": CURVE if split == TEST and method in MAIN else 0,
        "checkpoint.at_end": False,
        "checkpoint.export_hf": False,
        "logging.tensorboard": False,
        "logging.progress": False,
        "logging.rollouts.every": STEPS,
        "logging.rollouts.select": "all",
    }
    if task.verifier:
        values |= {"verifier.name": "custom", "verifier.custom": task.verifier}
    if method is KD:
        values |= {"train.batch_sequences": RESPONSES}
    if method is BASE:  # evaluated before its only step, which moves nothing
        values |= {"train.steps": 1, "evaluation.before": True, "evaluation.after": False}
    return values | method.settings


def nested(settings: dict[str, Any]) -> dict[str, Any]:
    """`{"a.b": 1}` as `{"a": {"b": 1}}`, as a configuration file has it."""
    result: dict[str, Any] = {}
    for name, value in settings.items():
        *sections, last = name.split(".")
        section = result
        for part in sections:
            section = section.setdefault(part, {})
        section[last] = value
    return result


def fingerprint(settings: dict[str, Any], place: Place) -> str:
    """Changes with any setting, problem or parameter that can change a run's result; the places of
    files do not matter, what is in them does."""
    names = {str(place.data): "data", str(place.student): "student", str(place.teacher): "teacher"}
    text = json.dumps(settings, sort_keys=True)
    for path, name in names.items():
        text = text.replace(path, name)
    files = [place.data / f"{name}.jsonl" for name in ("train", TUNING, EASY, HARD)]
    files += [folder / "model.safetensors" for folder in (place.student, place.teacher)]
    digests = [_digest(path) for path in files]
    return hashlib.sha256("\n".join([text, *digests]).encode()).hexdigest()[:16]


@cache
def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
