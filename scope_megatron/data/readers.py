"""Files, folders and Hub data sets as chunks of raw rows, which workers decode."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from scope_megatron.config.sections.data import DataSource
from scope_megatron.data.rows import Row, require_columns, require_rows, row_of
from scope_megatron.hub import HubError, fetch
from scope_megatron.hub.fetch import DATA_FILES

ROWS = 2000  # of a chunk


@dataclass(frozen=True)
class Chunk:
    """Successive raw rows of one set, undecoded."""

    name: str  # of the file or set
    first: int  # number of the first row, from 1
    content: list[bytes] | pyarrow.RecordBatch
    done: float = 0.0  # share of the set that is read with it, in [0, 1]

    def records(self) -> Iterator[tuple[int, dict[str, Any] | str]]:
        """(row's number, its columns, or why there are none). Empty lines are no rows."""
        if not isinstance(self.content, list):
            yield from enumerate(self.content.to_pylist(), start=self.first)
            return
        for number, line in enumerate(self.content, start=self.first):
            if line.strip():
                yield number, _json_object(line)


def require_source(source: DataSource, setting: str) -> None:
    """Raise ValueError unless a path is there and of a known kind."""
    path = source.path
    if source.hub is not None or path.is_dir():
        return
    if path.suffix not in READERS:
        known = " or ".join(READERS)
        raise ValueError(f"{setting}: {path} has an unknown suffix: it must be {known}")
    if not path.is_file():
        raise ValueError(f"{setting}: {path} does not exist")


def chunks_of(source: DataSource, setting: str) -> Iterator[Chunk]:
    """The rows of a set, in order. Raises ValueError naming ``setting``."""
    require_source(source, setting)
    if source.hub is not None or source.path.is_dir():
        return _data_set_chunks(source, setting)
    return READERS[source.path.suffix](source.path, setting)


@dataclass
class Table:
    """The usable rows of one file, and what was left out: ``FILE:LINE: reason``."""

    usable: list[Row] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def read_rows(path: str | Path, need_response: bool = False, setting: str = "data.train") -> Table:
    """Every row of one ``.jsonl`` or ``.parquet`` file. Raises ValueError naming ``setting``."""
    rows, columns = Table(), dict[str, None]()
    for chunk in chunks_of(DataSource(name=str(path)), setting):
        for number, record in chunk.records():
            where = f"{path}:{number}"
            if isinstance(record, str):
                rows.skipped.append(f"{where}: {record}")
                continue
            columns |= dict.fromkeys(record)
            try:
                rows.usable.append(row_of(record, where, need_response))
            except ValueError as error:
                rows.skipped.append(f"{where}: {error}")
    if columns:
        require_columns(columns, str(path), need_response, setting)
    require_rows(len(rows.usable), str(path), rows.skipped, 0, setting)
    return rows


def data_folder(source: DataSource, setting: str) -> Path:
    """The folder of a source that is one: its own, or the snapshot of its Hub name."""
    if source.hub is None:
        return source.path
    try:
        return fetch(source.hub, "dataset", source.files or DATA_FILES, setting)
    except HubError as error:
        raise ValueError(f"{setting}: {error}") from None


def file_records(path: Path, setting: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """(row's number, its columns, or why there are none) of one file of a known suffix."""
    for chunk in READERS[path.suffix](path, setting):
        yield from chunk.records()


def _json_object(line: bytes) -> dict[str, Any] | str:
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return f"not UTF-8 ({error.reason} at byte {error.start})"
    except json.JSONDecodeError as error:
        return f"not JSON ({error.msg} at column {error.colno})"
    except ValueError as error:  # a number of too many digits
        return f"not JSON ({error})"
    except RecursionError:
        return "not JSON (nested too deeply)"
    return record if isinstance(record, dict) else "not a JSON object"


def _jsonl_chunks(path: Path, setting: str) -> Iterator[Chunk]:
    try:
        size = path.stat().st_size
        with path.open("rb") as lines:
            for first in itertools.count(1, ROWS):
                if not (content := list(itertools.islice(lines, ROWS))):
                    return
                yield Chunk(str(path), first, content, lines.tell() / size)
    except OSError as error:
        raise ValueError(f"{setting}: {path} cannot be read: {error.strerror}") from error


def _parquet_chunks(path: Path, setting: str) -> Iterator[Chunk]:
    first = 1
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=ROWS):
                last = first + batch.num_rows - 1
                yield Chunk(str(path), first, batch, last / file.metadata.num_rows)
                first = last + 1
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{setting}: {path} is not a readable parquet file: {error}") from error


READERS: dict[str, Callable[[Path, str], Iterator[Chunk]]] = {
    ".jsonl": _jsonl_chunks,
    ".parquet": _parquet_chunks,
}


def _data_set_chunks(source: DataSource, setting: str) -> Iterator[Chunk]:
    folder = data_folder(source, setting)
    data = _load(source, folder, setting).with_format("arrow")
    for start in range(0, len(data), ROWS):
        table = data[start : start + ROWS].combine_chunks()
        for batch in table.to_batches():
            end = start + batch.num_rows
            yield Chunk(str(source), start + 1, batch, end / len(data))
            start = end


def _load(source: DataSource, folder: Path, setting: str) -> Any:
    """One split of a folder of data files, as a memory-mapped ``datasets.Dataset``."""
    import datasets

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    files = None
    if source.files is not None:
        files = [str(p) for pattern in source.files for p in sorted(folder.rglob(pattern))]
        if not files:
            raise ValueError(
                f"{setting}: {source} has no file that matches its files; correct them"
            )
    try:
        found = datasets.load_dataset(str(folder), source.subset, data_files=files)
    except Exception as error:  # of many kinds, by what is wrong in the files
        cause = error.__cause__ or error
        reason = " ".join(str(cause).split())[:300]
        raise ValueError(
            f"{setting}: {source} cannot be read as a data set ({type(cause).__name__}: {reason}); "
            "correct its subset or files"
        ) from error
    return found[_split(list(found), source, setting)]


def _split(splits: list[str], source: DataSource, setting: str) -> str:
    """The split that was asked for, or the one that the setting's purpose suggests."""
    if source.split is None:
        wanted = ["train"] if setting == "data.train" else ["test", "validation"]
        if len(splits) == 1:
            wanted = splits
    else:
        wanted = [source.split]
    for name in wanted:
        if name in splits:
            return name
    raise ValueError(
        f"{setting}: {source} has no split {wanted[0]}; set split to {' or '.join(splits)}"
    )
