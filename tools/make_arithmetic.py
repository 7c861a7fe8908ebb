"""Write the quickstart's data set: short chains of whole-number arithmetic, each with worked steps.

A problem is a start value and a few operations applied from left to right, `14 +7 -5 *2`. Its
worked response computes one operation a line and boxes the last value:

    14+7=21
    21-5=16
    16*2=32
    \\boxed{32}

Every value on the way stays in 0..99 and every operand is one digit, so a model of a million
weights can learn the task in minutes on one core; the number of problems runs into the tens of
millions, so a held-out problem has to be worked, not remembered.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Annotated

import typer

LARGEST_VALUE = 99
FEWEST_STEPS = 3
MOST_STEPS = 5
DATA_SOURCE = "arithmetic"


def draw_operation(value: int, rng: random.Random) -> tuple[str, int, int]:
    """One random operation that keeps the value in 0..99.

    Returns the sign (`+`, `-` or `*`), the one-digit operand and the value after it.
    """
    choices: dict[str, range] = {}
    if value < LARGEST_VALUE:
        choices["+"] = range(1, min(9, LARGEST_VALUE - value) + 1)
    if value > 0:
        choices["-"] = range(1, min(9, value) + 1)
        if 2 * value <= LARGEST_VALUE:
            choices["*"] = range(2, min(9, LARGEST_VALUE // value) + 1)
    sign = rng.choice(sorted(choices))
    operand = rng.choice(choices[sign])
    after = {"+": value + operand, "-": value - operand, "*": value * operand}[sign]
    return sign, operand, after


def draw_problem(
    rng: random.Random, fewest: int = FEWEST_STEPS, most: int = MOST_STEPS
) -> dict[str, str]:
    """One random problem as a row: `prompt`, `answer`, `response`, `data_source`."""
    value = rng.randint(0, LARGEST_VALUE)
    prompt = [str(value)]
    lines = []
    for _ in range(rng.randint(fewest, most)):
        sign, operand, after = draw_operation(value, rng)
        prompt.append(f"{sign}{operand}")
        lines.append(f"{value}{sign}{operand}={after}")
        value = after
    return {
        "prompt": " ".join(prompt),
        "answer": str(value),
        "response": "\n".join([*lines, f"\\boxed{{{value}}}"]),
        "data_source": DATA_SOURCE,
    }


def make_problems(count: int, seed: int) -> list[dict[str, str]]:
    """`count` different problems; the same seed gives the same problems in the same order."""
    rng = random.Random(seed)
    problems: dict[str, dict[str, str]] = {}
    while len(problems) < count:
        row = draw_problem(rng)
        problems.setdefault(row["prompt"], row)
    return list(problems.values())


def write_jsonl(path: Path, rows: list[dict[str, str]]) -> None:
    """Write one JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_splits(out: Path, train: int, evaluation: int, seed: int) -> tuple[Path, Path]:
    """Write `train.jsonl` and `eval.jsonl` under `out`; no problem is in both. Returns their paths.

    The held-out problems are drawn first, so they do not change with the number of train problems.
    """
    if train < 1 or evaluation < 1:
        raise ValueError(f"--train and --eval must be at least 1, got {train} and {evaluation}")
    rows = make_problems(train + evaluation, seed)
    out.mkdir(parents=True, exist_ok=True)
    train_path, eval_path = out / "train.jsonl", out / "eval.jsonl"
    write_jsonl(eval_path, rows[:evaluation])
    write_jsonl(train_path, rows[evaluation:])
    return train_path, eval_path


def main(
    out: Annotated[Path, typer.Option(help="Directory for train.jsonl and eval.jsonl.")],
    train: Annotated[int, typer.Option(help="Number of train problems.")] = 50_000,
    evaluation: Annotated[int, typer.Option("--eval", help="Number of held-out problems.")] = 256,
    seed: Annotated[int, typer.Option(help="The same seed writes the same files.")] = 1234,
) -> None:
    """Write train.jsonl and eval.jsonl of worked arithmetic chains."""
    for path in write_splits(out, train, evaluation, seed):
        typer.echo(f"wrote {path}")


if __name__ == "__main__":
    typer.run(main)
