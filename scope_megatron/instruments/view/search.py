"""The responses of a run: their index followed as it grows, filtered, sorted; a group's tokens."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj
import pyarrow.parquet as pq

from scope_megatron import outputs
from scope_megatron.instruments.view.curves import GrowingLines

INDEX_SCHEMA = pa.schema(
    {
        "kind": pa.string(),
        "step": pa.int64(),
        "set": pa.string(),
        "group": pa.int64(),
        "sample": pa.int64(),
        "verdict": pa.string(),
        "path": pa.string(),
        "finished": pa.bool_(),
        "weight": pa.float64(),
        "file": pa.string(),
        "row": pa.int64(),
        "tokens": pa.int64(),
        "student": pa.float64(),
        "teacher": pa.float64(),
        "gap": pa.float64(),
        "prompt": pa.string(),
    }
)
GROUP = ["kind", "step", "set", "group"]
# order: (column of a group, direction)
ORDERS = {
    "newest": ("step", "descending"),
    "oldest": ("step", "ascending"),
    "longest": ("tokens_max", "descending"),
    "heaviest": ("weight_max", "descending"),
    "disagree": ("gap_max", "descending"),
    "student": ("student_max", "descending"),
    "teacher": ("teacher_max", "descending"),
}
MOST_GROUPS = 50  # of an answer
MODELS = ("student", "teacher")
TOP_COLUMNS = [f"{whose}_top_{what}" for whose in MODELS for what in ("ids", "tokens", "logprobs")]


@dataclass(frozen=True)
class ResponseQuery:
    """What is looked for among responses; None: whatever it is."""

    kind: str | None = None
    path: str | None = None
    verdict: str | None = None
    finished: bool | None = None
    first: int | None = None  # step
    last: int | None = None
    order: str = "newest"
    offset: int = 0


class Responses:
    """The responses in a run's directory."""

    def __init__(self, output_dir: Path) -> None:
        self.directory = outputs.rollouts_dir(output_dir)
        self._parts: dict[Path, tuple[GrowingLines, list[pa.Table]]] = {}
        self._table: pa.Table | None = None

    def refresh(self) -> None:
        """Read what was written since."""
        found = sorted((self.directory / outputs.ROLLOUTS_INDEX).glob("*.jsonl"))
        for gone in self._parts.keys() - set(found):
            del self._parts[gone]
            self._table = None
        for path in found:
            lines, tables = self._parts.setdefault(path, (GrowingLines(path), []))
            fresh, data = lines.new()
            if fresh:
                tables.clear()
            if data:
                tables.append(_parse(data))
            if fresh or data:
                self._table = None
        if self._table is None:
            every = [table for _, tables in self._parts.values() for table in tables]
            self._table = pa.concat_tables([INDEX_SCHEMA.empty_table(), *every])

    def _present(self) -> pa.Table:
        """The index of the files that are there."""
        assert self._table is not None
        try:
            there = [path.name for path in self.directory.iterdir()]
        except OSError:
            there = []
        names = pa.array(there, pa.string())
        return self._table.filter(pc.is_in(self._table["file"], value_set=names))

    def size(self) -> int:
        """Bytes of the index: it changes when there are more responses, and costs no reading."""
        found = (self.directory / outputs.ROLLOUTS_INDEX).glob("*.jsonl")
        return sum(path.stat().st_size for path in found)

    def find(self, wanted: ResponseQuery) -> dict[str, Any]:
        """Groups with a response that is ``wanted``, so many from ``offset`` on, and their total.

        Sorted by the responses that are wanted; each group tells of all of its own.
        """
        table = self._present()
        matching = table.filter(_mask(table, wanted)) if table.num_rows else table
        numbers = ["tokens", "weight", "gap", "student", "teacher"]
        groups = matching.group_by(GROUP).aggregate(
            [("sample", "count"), *((name, "max") for name in numbers)]
        )
        column, direction = ORDERS[wanted.order]
        keys = [(column, direction), ("step", "descending"), ("group", "ascending")]
        order = pc.sort_indices(groups, sort_keys=list(dict(keys[::-1]).items())[::-1])
        page = groups.take(order[wanted.offset : wanted.offset + MOST_GROUPS]).to_pylist()
        steps = pa.array([group["step"] for group in page], pa.int64())
        near = table.filter(pc.is_in(table["step"], value_set=steps))
        for group in page:
            group["members"] = self._members(near, group)
        return {"total": groups.num_rows, "matching": matching.num_rows, "groups": page}

    @staticmethod
    def _members(table: pa.Table, group: dict[str, Any]) -> list[dict[str, Any]]:
        members = _of_group(table, group).sort_by("sample").to_pylist()
        return [_clean({k: v for k, v in m.items() if k not in GROUP}) for m in members]

    def group(
        self, kind: str, step: int, name: str, number: int, most: int | None = None
    ) -> list[dict[str, Any]]:
        """Every column of a group's responses, by sample; of their tokens the first ``most``."""
        key = {"kind": kind, "step": step, "set": name, "group": number}
        found = _of_group(self._present(), key).select(["file", "row"]).to_pylist()
        rows: dict[str, list[int]] = {}
        for place in found:
            rows.setdefault(place["file"], []).append(place["row"])
        out = [r for file, numbers in rows.items() for r in self._read(file, numbers, most)]
        return sorted(out, key=lambda row: row["sample"])

    def alternatives(
        self, kind: str, step: int, name: str, number: int, sample: int, token: int
    ) -> dict[str, Any] | None:
        """The likeliest tokens in the place of one of a response, by model: their id, token and
        logprob, falling; null where they were not written. None: there is no such token."""
        key = {"kind": kind, "step": step, "set": name, "group": number}
        found = _of_group(self._present(), key)
        found = found.filter(pc.equal(found["sample"], sample)).select(["file", "row"])
        for place in found.to_pylist()[-1:]:
            names = ["response_tokens", *TOP_COLUMNS]
            for table in self._tables(place["file"], [place["row"]], names.__contains__):
                if 0 <= token < table["response_tokens"][0].as_py():
                    return {whose: _best_at(table, whose, token) for whose in MODELS}
        return None

    def _read(self, file: str, rows: list[int], most: int | None) -> list[dict[str, Any]]:
        """Some rows of a file, without the likeliest tokens: those are asked for one by one."""
        tables = self._tables(file, rows, lambda name: name not in TOP_COLUMNS)
        return [_clean(row) for table in tables for row in _cut(table, most).to_pylist()]

    def _tables(
        self, file: str, rows: list[int], wanted: Callable[[str], bool]
    ) -> Iterator[pa.Table]:
        """Some rows of a file; only the row groups that hold them are read."""
        try:
            source = pq.ParquetFile(self.directory / file)
        except (OSError, pa.ArrowInvalid):
            return  # removed in the meantime
        names, start = [name for name in source.schema_arrow.names if wanted(name)], 0
        for number in range(source.metadata.num_row_groups):
            count = source.metadata.row_group(number).num_rows
            inside = [row - start for row in rows if start <= row < start + count]
            if inside:
                yield source.read_row_group(number, columns=names).take(inside)
            start += count


def _best_at(table: pa.Table, whose: str, token: int) -> list[dict[str, Any]] | None:
    """A model's likeliest tokens in one place of the first row; None where they are not there."""
    columns = [f"{whose}_top_{what}" for what in ("ids", "tokens", "logprobs")]
    if not set(columns) <= set(table.column_names) or not table[columns[0]][0].is_valid:
        return None
    ids, texts, logprobs = (table[name][0][token].as_py() for name in columns)
    rows = [
        {"id": i, "token": text, "logprob": p}
        for i, text, p in zip(ids, texts, logprobs, strict=True)
    ]
    return [_clean(row) for row in rows]


def _cut(table: pa.Table, most: int | None) -> pa.Table:
    """The first ``most`` entries of every list, and the text without what they are not."""
    if most is None:
        return table
    columns = {}
    for name in table.column_names:
        column = table[name].combine_chunks()
        if pa.types.is_list(column.type):
            column = pc.list_slice(column, 0, most)
        elif name == "response":
            column = pc.utf8_slice_codeunits(column, 0, 4 * most)
        columns[name] = column
    return pa.table(columns)


def _parse(data: bytes) -> pa.Table:
    read = pj.ReadOptions(block_size=max(len(data) + 1, 2**20), use_threads=True)
    if len(data) > 2**24:
        read = pj.ReadOptions(block_size=2**22)
    options = pj.ParseOptions(explicit_schema=INDEX_SCHEMA, unexpected_field_behavior="ignore")
    return pj.read_json(io.BytesIO(data), read_options=read, parse_options=options)


def _mask(table: pa.Table, wanted: ResponseQuery) -> pa.Array:
    mask = pc.is_valid(table["step"])
    for name in ("kind", "path", "verdict", "finished"):
        value = getattr(wanted, name)
        if value is not None:
            mask = pc.and_(mask, pc.equal(table[name], pa.scalar(value)))
    if wanted.first is not None:
        mask = pc.and_(mask, pc.greater_equal(table["step"], wanted.first))
    if wanted.last is not None:
        mask = pc.and_(mask, pc.less_equal(table["step"], wanted.last))
    return pc.fill_null(mask, False)


def _of_group(table: pa.Table, key: dict[str, Any]) -> pa.Table:
    same = [pc.equal(table[name], pa.scalar(key[name])) for name in GROUP]
    mask = pc.and_(pc.and_(same[0], same[1]), pc.and_(same[2], same[3]))
    return table.filter(pc.fill_null(mask, False))


def _clean(row: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN: null."""

    def number(value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return {
        name: [number(v) for v in value] if isinstance(value, list) else number(value)
        for name, value in row.items()
    }
