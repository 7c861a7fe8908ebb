"""When the engine sleeps. What that frees only a GPU shows: a CPU engine keeps its memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scope_megatron.config import Config
from scope_megatron.job.watchdog import Progress
from scope_megatron.train.trainer import Trainer


class Notes:
    """Stands where the actor does, and notes what it is asked for."""

    waits_in = frozenset[str]()

    def __init__(self) -> None:
        self.asked: list[str] = []

    def send_parameters(self, student: Any) -> None:
        self.asked.append("weights")

    def evaluate(self, dataset: Any) -> tuple[dict[str, float], dict[str, Any]]:
        self.asked.append("evaluate")
        return {}, {}

    def rest(self) -> None:
        self.asked.append("rest")


def trainer(root: Path, algorithm: str, notes: Notes | None) -> Trainer:
    """Without models: only what these methods touch."""
    sizes = {"batch_sequences": 2} if algorithm == "kd" else {}
    values: dict[str, Any] = {
        "output_dir": str(root),
        "algorithm": {"name": algorithm},
        "model": {"student": "s", "teacher": "t"},
        "data": {"train": "d.jsonl", "max_prompt_tokens": 8},
        "rollout": {"prompts_per_step": 1, "group_size": 2, "max_response_tokens": 16},
        "train": {"steps": 1, "microbatch_tokens": 64, **sizes},
    }
    made = Trainer.__new__(Trainer)
    made.config = Config.model_validate(values)
    made.progress = Progress()
    made.eval_data = object()  # type: ignore[assignment]
    made.learner = type("Models", (), {"student": None})()  # type: ignore[assignment]
    made.responses = type("Unwritten", (), {"evaluated": lambda *_: None})()  # type: ignore[assignment]
    made._actor = notes  # type: ignore[assignment]
    return made


@pytest.mark.parametrize(
    ("algorithm", "prepared", "evaluated"),
    [
        ("scope", ["weights"], ["evaluate"]),  # awake: the next step samples
        ("kd", ["rest"], ["weights", "evaluate", "rest"]),
    ],
)
def test_an_engine_that_only_evaluates_sleeps_otherwise(
    tmp_path: Path, algorithm: str, prepared: list[str], evaluated: list[str]
) -> None:
    notes = Notes()
    run = trainer(tmp_path, algorithm, notes)
    run.prepare_engine()
    assert notes.asked == prepared
    notes.asked.clear()
    run.evaluate(0)
    assert notes.asked == evaluated


def test_a_run_without_an_engine_has_nothing_to_prepare(tmp_path: Path) -> None:
    trainer(tmp_path, "kd", None).prepare_engine()
