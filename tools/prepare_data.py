"""Prepare datasets: convert between .parquet and .jsonl, split, and check reference answers.

python -m tools.prepare_data convert deepmath.parquet deepmath.jsonl --limit 5000 --split 99:1
python -m tools.prepare_data verify deepmath.parquet
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from scope_megatron.rollout.prompts import READERS, Row, read_rows
from scope_megatron.rollout.verify.mathematics import MathVerifier
from scope_megatron.types import Verdict

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)
NAMED = 10  # skipped rows printed one by one


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help=".parquet or .jsonl file to read")],
    target: Annotated[Path, typer.Argument(help=".parquet or .jsonl file to write")],
    limit: Annotated[int | None, typer.Option(min=1, help="rows to keep, from the start")] = None,
    split: Annotated[
        str | None,
        typer.Option(help="TRAIN:EVAL shares, as 99:1; writes TARGET-train and TARGET-eval"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="draws the rows of the split")] = 1234,
    responses: Annotated[bool, typer.Option(help="keep responses; every row needs one")] = False,
) -> None:
    """Write the usable rows of SOURCE to TARGET."""
    try:
        rows = _load(source, responses)[:limit]
        shares = _shares(split, len(rows)) if split else None
        if target.suffix not in READERS:
            raise ValueError(f"{target}: the suffix must be {' or '.join(READERS)}")
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if shares is None:
        _write(rows, target, "train")
        return
    order = np.random.default_rng(seed).permutation(len(rows))
    for name, chosen in (("train", order[: shares[0]]), ("eval", order[shares[0] :])):
        part = target.with_name(f"{target.stem}-{name}{target.suffix}")
        _write([rows[i] for i in sorted(chosen)], part, name)


@app.command()
def verify(
    source: Annotated[Path, typer.Argument(help=".parquet or .jsonl file to read")],
    limit: Annotated[int | None, typer.Option(min=1, help="rows to check, from the start")] = None,
    timeout_s: Annotated[float, typer.Option(help="seconds for one answer")] = 5.0,
) -> None:
    r"""Put each row's own answer in \boxed{} and grade it against itself: as training does, and
    by algebra alone (an answer that cannot be read as mathematics has to be written alike)."""
    try:
        rows = _load(source, need_response=False)[:limit]
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    items = [(f"The answer is \\boxed{{{row.answer}}}.", row.answer) for row in rows]
    for name, algebra_only in (("the math verifier", False), ("its algebra alone", True)):
        with MathVerifier(timeout_s, algebra_only=algebra_only) as verifier:
            verdicts = verifier.grade(items)
        correct = sum(v is Verdict.CORRECT for v in verdicts)
        typer.echo(f"{name}: {correct} of {len(rows)} answers verify against themselves")
        for row, verdict in zip(rows, verdicts, strict=True):
            if verdict is not Verdict.CORRECT:
                typer.echo(f"  {row.where}: {verdict}: {row.answer}")


def _load(source: Path, need_response: bool) -> list[Row]:
    """The usable rows, after saying how many there are and what was skipped."""
    rows = read_rows(source, need_response, setting="SOURCE")
    typer.echo(f"{source}: {len(rows.usable)} rows, {len(rows.skipped)} skipped")
    for line in rows.skipped[:NAMED]:
        typer.echo(f"  {line}")
    if len(rows.skipped) > NAMED:
        typer.echo(f"  ... and {len(rows.skipped) - NAMED} more")
    sources = Counter(row.source or "(no data_source)" for row in rows.usable)
    typer.echo("  " + ", ".join(f"{name}: {count}" for name, count in sources.most_common()))
    return rows.usable


def _shares(split: str, size: int) -> tuple[int, int]:
    """Rows for training and evaluation; both get at least one."""
    try:
        train, evaluation = (float(part) for part in split.split(":"))
    except ValueError:
        raise ValueError(f"--split {split}: must be two numbers, as 99:1") from None
    if train <= 0 or evaluation <= 0 or size < 2:
        raise ValueError(f"--split {split}: both shares of {size} rows must be above 0")
    count = round(size * train / (train + evaluation))
    count = min(max(count, 1), size - 1)
    return count, size - count


def _write(rows: list[Row], target: Path, split: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.suffix == ".jsonl":
        lines = (json.dumps(_jsonl_record(row), ensure_ascii=False) + "\n" for row in rows)
        target.write_text("".join(lines), encoding="utf-8")
    else:
        import pyarrow
        import pyarrow.parquet

        records = [_parquet_record(row, i, split) for i, row in enumerate(rows)]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), target)
    typer.echo(f"{target}: {len(rows)} rows")


def _jsonl_record(row: Row) -> dict[str, object]:
    record = {"prompt": list(row.messages), "answer": row.answer, "data_source": row.source}
    return record | _optional(row)


def _optional(row: Row) -> dict[str, object]:
    """The columns that not every file has."""
    columns = {"response": row.response, "verifier": row.verifier}
    return {name: value for name, value in columns.items() if value}


def _parquet_record(row: Row, index: int, split: str) -> dict[str, object]:
    record: dict[str, object] = {
        "data_source": row.source,
        "prompt": list(row.messages),
        "ability": "math",
        "reward_model": {"ground_truth": row.answer, "style": "rule"},
        "extra_info": {"index": index, "split": split},
    }
    return record | _optional(row)


if __name__ == "__main__":
    app()
