"""Prepare datasets: benchmarks as published, .parquet and .jsonl, splits, reference answers.

python -m tools.prepare_data benchmark math500 math500.jsonl
python -m tools.prepare_data convert deepmath.parquet deepmath.jsonl --limit 5000 --split 99:1
python -m tools.prepare_data verify deepmath.parquet
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from scope_megatron.data.readers import READERS, Table, read_rows
from scope_megatron.data.rows import Row
from scope_megatron.rollout.verify import verifier_for
from scope_megatron.rollout.verify.mathematics import MathVerifier
from scope_megatron.types import Verdict, accepted
from tools.layouts import LAYOUTS, SUFFIXES, read_records, to_row

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
def benchmark(
    name: Annotated[str, typer.Argument(help=f"one of {', '.join(LAYOUTS)}")],
    target: Annotated[Path, typer.Argument(help=".parquet or .jsonl file to write")],
    source: Annotated[
        str | None,
        typer.Option(help="published file, folder of them, or Hugging Face dataset"),
    ] = None,
    instruction: Annotated[
        str | None, typer.Option(help="text after each question, in place of the usual one")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="rows to keep, from the start")] = None,
) -> None:
    """Write a benchmark, as its publisher lays it out, as rows to train or evaluate on."""
    try:
        if name not in LAYOUTS:
            raise ValueError(f"NAME: no layout {name!r}; use one of {', '.join(LAYOUTS)}")
        if target.suffix not in READERS:
            raise ValueError(f"{target}: the suffix must be {' or '.join(READERS)}")
        files = published_files(source or LAYOUTS[name].hub, LAYOUTS[name].files)
        rows = Table()
        for path in files:
            _add_benchmark_rows(rows, name, path, instruction)
        if not rows.usable:
            reasons = "; ".join(rows.skipped[:3]) or "the files are empty"
            raise ValueError(f"{source or LAYOUTS[name].hub}: no usable row ({reasons})")
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    _say_rows(", ".join(map(str, files)), rows)
    _write(rows.usable[:limit], target, "test")


def _add_benchmark_rows(rows: Table, name: str, path: Path, instruction: str | None) -> None:
    """ValueError if the file is no table; rows without use are skipped with their reason."""
    try:
        for number, record in read_records(path):
            where = f"{path}:{number}"
            try:
                if not isinstance(record, Mapping):
                    raise ValueError(str(record)[:100])
                rows.usable.append(to_row(name, record, where, instruction))
            except (ValueError, KeyError, TypeError) as error:
                reason = f"no {error}" if isinstance(error, KeyError) else error
                rows.skipped.append(f"{where}: {reason}")
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from None


def published_files(source: str, part: str) -> list[Path]:
    """The data files of a file, a folder or a Hugging Face dataset: those whose path has ``part``
    in it, else those that are called test, else all. ValueError if there are none."""
    path = Path(source).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        names = [str(p.relative_to(path)) for p in sorted(path.rglob("*")) if p.is_file()]
        return [path / name for name in chosen_files(names, part, source)]
    if path.suffix or source.count("/") != 1:
        raise ValueError(f"SOURCE: {source} is no file, no folder and no Hugging Face dataset")
    from huggingface_hub import HfApi, hf_hub_download

    try:
        names = sorted(HfApi().list_repo_files(source, repo_type="dataset"))
        chosen = chosen_files(names, part, source)
        return [Path(hf_hub_download(source, name, repo_type="dataset")) for name in chosen]
    except Exception as error:  # its own kinds, and those of whatever HTTP library it uses
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"SOURCE: {source} cannot be downloaded ({reason}); download it and give the file"
        ) from None


def chosen_files(names: list[str], part: str, source: str) -> list[str]:
    """The data files among ``names`` (see ``published_files``)."""
    data = [name for name in names if name.endswith(SUFFIXES) and not name.startswith(".")]
    for wanted in filter(None, (part, "test")):
        if found := [name for name in data if wanted in name]:
            return found
    if data:
        return data
    raise ValueError(f"SOURCE: {source} has no file that ends in {', '.join(SUFFIXES)}")


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
    rows = [row for row in rows if (row.verifier or verifier_for(row.source)) == "math"]
    if not rows:
        raise typer.BadParameter(f"{source}: the math verifier judges none of its rows")
    items = [(f"The answer is \\boxed{{{accepted(row.answer)[0]}}}.", row.answer) for row in rows]
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
    _say_rows(str(source), rows)
    return rows.usable


def _say_rows(source: str, rows: Table) -> None:
    typer.echo(f"{source}: {len(rows.usable)} rows, {len(rows.skipped)} skipped")
    for line in rows.skipped[:NAMED]:
        typer.echo(f"  {line}")
    if len(rows.skipped) > NAMED:
        typer.echo(f"  ... and {len(rows.skipped) - NAMED} more")
    sources = Counter(row.source or "(no data_source)" for row in rows.usable)
    typer.echo("  " + ", ".join(f"{name}: {count}" for name, count in sources.most_common()))


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

        if any(isinstance(row.answer, tuple) for row in rows):  # a column has one type
            rows = [replace(row, answer=accepted(row.answer)) for row in rows]
        records = [_parquet_record(row, i, split) for i, row in enumerate(rows)]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), target)
    typer.echo(f"{target}: {len(rows)} rows")


def _jsonl_record(row: Row) -> dict[str, object]:
    record: dict[str, object] = {
        "prompt": list(row.messages),
        "answer": row.answer,
        "data_source": row.source,
    }
    return record | _optional(row)


def _optional(row: Row) -> dict[str, object]:
    """The columns that not every file has."""
    columns = {"response": row.response, "verifier": row.verifier}
    return {name: value for name, value in columns.items() if value}


def _parquet_record(row: Row, index: int, split: str) -> dict[str, object]:
    record: dict[str, object] = {
        "data_source": row.source,
        "prompt": list(row.messages),
        "ability": "code" if verifier_for(row.source) == "code" else "math",
        "reward_model": {"ground_truth": row.answer, "style": "rule"},
        "extra_info": {"index": index, "split": split},
    }
    return record | _optional(row)


if __name__ == "__main__":
    app()
