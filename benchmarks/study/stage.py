"""A task's data, models, and responses of its teacher: made once, kept in the work directory."""

from __future__ import annotations

import fcntl
import json
import shutil
from pathlib import Path

from benchmarks.rounds import ROOT
from benchmarks.study.methods import RESPONSES, STEPS
from benchmarks.study.runner import call
from benchmarks.study.settings import Place
from tools.make_arithmetic import write_jsonl
from tools.tasks.family import Task
from tools.tasks.write import TRAIN, write_rollout_files

SHIPPED = {  # task: models of other tasks
    "chains": ("tiny-student", "tiny-teacher"),  # the quickstart's
    "walk_hard": ("study/walk_hard/student", "study/walk_strong/teacher"),
    "walk_hard_part": ("study/walk_hard/student", "study/walk/teacher"),
}
DATA_SEED = 1234
TAUGHT_SAMPLES = -(-RESPONSES * STEPS // TRAIN)  # per prompt: as many as the others sample


def place_of(task: Task, work: Path) -> Place:
    """The task's files; its models are in assets/."""
    names = SHIPPED.get(task.name, (f"study/{task.family}/student", f"study/{task.name}/teacher"))
    student, teacher = (ROOT / "assets" / name for name in names)
    return Place(work / task.name / "data", student, teacher)


def prepare_data(task: Task, work: Path) -> Place:
    """Write the problems, where they are not written yet."""
    place = place_of(task, work)
    if not (place.data / "train.jsonl").is_file():
        new = place.data.with_name("data.new")
        shutil.rmtree(new, ignore_errors=True)
        write_rollout_files(task, new, DATA_SEED)
        new.rename(place.data)
    return place


def prepare_taught(task: Task, place: Place, log: Path) -> None:
    """Have the teacher answer every training prompt, for KD, where it has not yet."""
    with (place.data / "taught.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another study's process may be at it
        if not place.taught.is_file():
            _teach(task, place, log)


def _teach(task: Task, place: Place, log: Path) -> None:
    out = place.data / "taught"
    source = place.data / "train.jsonl"
    arguments = ["evaluate", "--model", str(place.teacher), "--data", f"train={source}"]
    arguments += ["--samples", str(TAUGHT_SAMPLES), "--temperature", "1.0", "--top-p", "1.0"]
    arguments += ["--top-k", "-1", "--max-tokens", str(task.max_response_tokens)]
    arguments += ["--max-prompt-tokens", str(task.max_prompt_tokens), "--kv-cache-gib", "0.1"]
    arguments += ["--draws", "100", "--out", str(out)]
    if task.verifier:
        arguments += ["--verifier", "custom", "--custom", task.verifier]
    call(arguments, log)
    prompts = [json.loads(line) for line in source.read_text().splitlines()]
    samples = [json.loads(line) for line in (out / "samples/train.jsonl").read_text().splitlines()]
    samples.sort(key=lambda sample: (sample["sample"], sample["problem"]))
    rows = [
        prompts[sample["problem"]] | {"response": sample["text"]}
        for sample in samples
        if sample["finished"] and sample["text"]
    ]
    unfinished = place.taught.with_suffix(".new")
    write_jsonl(unfinished, rows)
    unfinished.rename(place.taught)
