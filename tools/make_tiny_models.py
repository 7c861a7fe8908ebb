"""Make the quickstart's assets: arithmetic problems, a tiny teacher and a tiny student.

Both models start from random weights and are trained by this project's own supervised path (`kd`
on worked solutions). The teacher is trained until it has learnt the task; the student is smaller
and is stopped early, when it gets about half of the problems right: that is what the quickstart
improves. Takes a few minutes on two cores:

    python tools/make_tiny_models.py --out assets
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scope_megatron import outputs
from tools.make_arithmetic import make_problems, write_jsonl
from tools.tiny_tokenizer import make_tokenizer

ROLLOUT_PROBLEMS, EVAL_PROBLEMS, SUPERVISED_PROBLEMS = 4096, 128, 80_000
WORKED_PROBLEMS = 1024  # of the supervised ones, shipped for configs/kd.yaml


@dataclass(frozen=True)
class Recipe:
    """Shape and supervised training of one tiny model."""

    name: str
    hidden_size: int
    layers: int
    heads: int
    ffn: int
    lr: float
    schedule: str
    steps: int
    seed: int
    accuracy: tuple[float, float]  # Avg@8 must come out between these
    numbers: bool = False  # 10 to 99 are one token each


TEACHER = Recipe(
    "tiny-teacher",
    192,
    2,
    6,
    512,
    lr=3e-3,
    schedule="cosine",
    steps=2500,
    seed=0,
    accuracy=(0.9, 1.0),
)
STUDENT = Recipe(
    "tiny-student",
    128,
    2,
    4,
    256,
    lr=2e-3,
    schedule="constant",
    steps=650,
    seed=0,
    accuracy=(0.3, 0.6),
)


def random_model(recipe: Recipe, out: Path) -> None:
    """A Hugging Face directory with random weights and the tiny tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer(out, recipe.numbers)
    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=recipe.ffn,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    LlamaForCausalLM(config).save_pretrained(out)


def supervised_config(recipe: Recipe, start: Path, data: Path, output: Path) -> dict[str, Any]:
    """The `kd` run that trains one model on worked solutions, data-parallel on two processes."""
    return {
        "seed": recipe.seed,
        "output_dir": str(output),
        "algorithm": {"name": "kd"},
        "model": {"student": str(start), "dtype": "float32"},
        "parallel": {"data": 2},
        "data": {
            "train": str(data / "supervised.jsonl"),
            "eval": str(data / "eval.jsonl"),
            "max_prompt_tokens": 32,
        },
        "optimizer": {
            "lr": recipe.lr,
            "schedule": recipe.schedule,
            "warmup_steps": 100,
        },
        "train": {"steps": recipe.steps, "microbatch_tokens": 4096, "batch_sequences": 32},
        "evaluation": {"before": False, "after": True, "max_response_tokens": 64},
        "checkpoint": {"at_end": False},
        "logging": {"tensorboard": False},
    }


def train_model(recipe: Recipe, data: Path, work: Path, out: Path) -> None:
    """Random weights -> `scope-megatron train` -> ``out``."""
    start, output = work / f"{recipe.name}-random", work / recipe.name
    random_model(recipe, start)
    config = work / f"{recipe.name}.yaml"
    config.write_text(yaml.safe_dump(supervised_config(recipe, start, data, output)))
    command = [sys.executable, "-m", "scope_megatron", "train", str(config)]
    subprocess.run(command, check=True)
    _require_accuracy(recipe, output / outputs.METRICS)
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(output / outputs.HF, out)
    typer.echo(f"wrote {out}")


def _require_accuracy(recipe: Recipe, metrics: Path) -> None:
    """A student stopped early lands anywhere: refuse one that would spoil the quickstart."""
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    accuracy = [row["eval/avg@8"] for row in rows if "eval/avg@8" in row][-1]
    low, high = recipe.accuracy
    if not low <= accuracy <= high:
        raise SystemExit(
            f"{recipe.name}: Avg@8 is {accuracy:.1%} after {recipe.steps} steps, wanted "
            f"{low:.0%} to {high:.0%}; change its steps (--student-steps) or its seed"
        )


def write_data(rollout_dir: Path, work: Path, seed: int) -> None:
    """Problems for rollouts and evaluation to ``rollout_dir``, for supervised training to ``work``.

    No problem is in two of the three sets. Rollouts come without worked solutions; the first
    supervised problems are ``worked.jsonl`` beside them.
    """
    rows = make_problems(EVAL_PROBLEMS + ROLLOUT_PROBLEMS + SUPERVISED_PROBLEMS, seed)
    rollout_dir.mkdir(parents=True, exist_ok=True)
    held_out, rows = rows[:EVAL_PROBLEMS], rows[EVAL_PROBLEMS:]
    for name, part in (("eval", held_out), ("train", rows[:ROLLOUT_PROBLEMS])):
        bare = [{key: row[key] for key in ("prompt", "answer", "data_source")} for row in part]
        write_jsonl(rollout_dir / f"{name}.jsonl", bare)
    supervised = rows[ROLLOUT_PROBLEMS:]
    write_jsonl(rollout_dir / "worked.jsonl", supervised[:WORKED_PROBLEMS])
    write_jsonl(work / "supervised.jsonl", supervised)
    shutil.copy(rollout_dir / "eval.jsonl", work)


def main(
    out: Annotated[Path, typer.Option(help="Directory of the assets.")] = Path("assets"),
    seed: Annotated[int, typer.Option(help="Seed of the problems.")] = 1234,
    student_steps: Annotated[
        int, typer.Option(help="Supervised steps of the student: fewer make it worse.")
    ] = STUDENT.steps,
    only: Annotated[str, typer.Option(help="Make only this: data, teacher or student.")] = "",
) -> None:
    """Write the problems, the teacher and the student of the quickstart."""
    student = Recipe(**{**vars(STUDENT), "steps": student_steps})
    with tempfile.TemporaryDirectory(prefix="tiny-models-") as name:
        work = Path(name)
        write_data(out / "arithmetic", work, seed)
        if only in ("", "teacher"):
            train_model(TEACHER, work, work, out / TEACHER.name)
        if only in ("", "student"):
            train_model(student, work, work, out / STUDENT.name)


if __name__ == "__main__":
    typer.run(main)
