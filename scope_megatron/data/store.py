"""Prompts tokenised once per node, kept on disk and mapped into memory.

A store is a directory: ``prompts.arrow`` (Arrow's file format), ``skipped.txt`` (a line for each
row that was left out) and ``info.json``, which is written last. Its name is the digest of what it
was made of, so it is never stale. All processes of a node share the pages of its file.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import json
import os
import shutil
import sys
import time
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow
from filelock import FileLock, Timeout

from scope_megatron import disk
from scope_megatron.config.sections.data import DataSource
from scope_megatron.data.columns import RowShape, require_shape
from scope_megatron.data.contents import describe_prompts, key_of
from scope_megatron.data.crew import Crew, TokenisingProgress
from scope_megatron.data.readers import chunks_of
from scope_megatron.data.rows import require_columns, require_rows
from scope_megatron.data.tokenise import SCHEMA, PromptRecipe
from scope_megatron.data.tokenizer import Tokenizer


@dataclass
class SetInfo:
    """What became of one set's rows."""

    name: str
    rows: int = 0
    skipped: int = 0
    filtered: int = 0
    columns: dict[str, None] = field(default_factory=dict)


@dataclass(frozen=True)
class Info:
    """What is known of a store without its prompts."""

    rows: int
    fingerprint: str
    kinds: list[list[str]]  # the different [verifier, data_source] of rows
    tags: dict[str, str]  # the different tags of teachers, and FILE:LINE of the first row of each
    sets: list[dict[str, Any]]
    description: dict[str, Any]
    seconds: float  # that tokenising took


class PromptStore:
    """The prompts of a directory, read-only."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.info = Info(**json.loads((directory / "info.json").read_text()))
        self._map = pyarrow.memory_map(str(directory / "prompts.arrow"))
        reader = pyarrow.ipc.open_file(self._map)
        self._batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        self._ends = list(itertools.accumulate(batch.num_rows for batch in self._batches))

    def __len__(self) -> int:
        return self.info.rows

    def row(self, index: int) -> dict[str, Any]:
        """The values of SCHEMA at ``index``, from 0. IndexError outside."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        place = bisect.bisect_right(self._ends, index)
        batch = self._batches[place]
        offset = index - self._ends[place] + batch.num_rows
        return {name: batch.column(name)[offset].as_py() for name in SCHEMA.names}

    def table(self) -> pyarrow.Table:
        """All prompts, without a copy."""
        return pyarrow.Table.from_batches(self._batches, schema=SCHEMA)

    def skipped_lines(self, count: int | None = None) -> list[str]:
        """`FILE:LINE: reason` of the rows that cannot be used: all, or the first ``count``."""
        with (self.directory / "skipped.txt").open(encoding="utf-8") as lines:
            return [line.rstrip("\n") for line in itertools.islice(lines, count)]


def open_store(
    sources: tuple[DataSource, ...],
    shapes: list[RowShape],
    recipe: PromptRecipe,
    tokenizer: Tokenizer,
    setting: str,
    cache: Path,
) -> PromptStore:
    """The store of these rows, tokenised now if no process of this node did it before.

    Raises ValueError naming ``setting`` or ``data.cache_dir``.
    """
    try:
        key = key_of(
            description := describe_prompts(sources, shapes, recipe, tokenizer, setting, cache)
        )
        directory = cache / "prompts" / key
        if not (directory / "info.json").is_file():
            (cache / "prompts").mkdir(parents=True, exist_ok=True)
            with _lock(cache / "prompts" / f"{key}.lock", setting):
                if not (directory / "info.json").is_file():
                    try:
                        _build(directory, sources, shapes, recipe, tokenizer, setting, description)
                    except BaseException:
                        shutil.rmtree(disk.temporary_path(directory), ignore_errors=True)
                        raise
        with suppress(OSError):
            os.utime(directory)  # whoever clears the cache sees what is in use
        return PromptStore(directory)
    except OSError as error:
        raise ValueError(
            f"data.cache_dir: {cache} cannot hold the tokenised rows of {setting} "
            f"({error.strerror or error}); give a directory with free space"
        ) from error


def _build(
    directory: Path,
    sources: tuple[DataSource, ...],
    shapes: list[RowShape],
    recipe: PromptRecipe,
    tokenizer: Tokenizer,
    setting: str,
    description: dict[str, Any],
) -> None:
    started, digest = time.monotonic(), hashlib.sha256()
    sets, kinds, rows = list[dict[str, Any]](), set[tuple[str, str]](), 0
    tags = dict[str, str]()
    temporary = disk.make_temporary(directory)
    with (
        closing(Crew(recipe, tokenizer)) as crew,
        (temporary / "skipped.txt").open("w", encoding="utf-8") as skipped_file,
        pyarrow.OSFile(str(temporary / "prompts.arrow"), "wb") as file,
        pyarrow.ipc.new_file(file, SCHEMA) as writer,
        TokenisingProgress(setting) as progress,
    ):
        for source, shape in zip(sources, shapes, strict=True):
            done, first_skipped = SetInfo(str(source)), list[str]()
            for part in crew.parts(chunks_of(source, setting), shape):
                writer.write_batch(part.prompts)
                digest.update(part.rows)
                columns = (part.prompts.column(name).to_pylist() for name in ("verifier", "source"))
                kinds.update(zip(*columns, strict=True))
                tags = part.tags | tags
                skipped_file.writelines(f"{' '.join(line.split())}\n" for line in part.skipped)
                first_skipped += part.skipped[: 3 - len(first_skipped)]
                done.rows += part.prompts.num_rows
                done.skipped += len(part.skipped)
                done.filtered += part.filtered
                done.columns |= part.columns
                progress.show(rows + done.rows, (len(sets) + part.done) / len(sources))
            if done.columns:
                require_shape(shape, done.columns, done.name, setting)
                if not isinstance(shape.columns, str):
                    held = [*done.columns, *(shape.columns or ())]
                    require_columns(held, done.name, recipe.need_response, setting)
            require_rows(done.rows, done.name, first_skipped, done.filtered, setting)
            rows += done.rows
            sets.append(asdict(done) | {"columns": list(done.columns)})
    info = Info(
        rows,
        digest.hexdigest(),
        [list(kind) for kind in sorted(kinds)],
        tags,
        sets,
        description,
        time.monotonic() - started,
    )
    (temporary / "info.json").write_text(json.dumps(asdict(info), indent=1))
    disk.commit_directory(temporary, directory)


def _lock(path: Path, setting: str) -> FileLock:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
        lock.release()
    except Timeout:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"{setting}: another process tokenises these rows; waiting", file=sys.stderr)
    return lock
