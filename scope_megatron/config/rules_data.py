"""The rules on data sets. Each yields `key: what; fix`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

from scope_megatron.config.rules_models import Command, evaluates
from scope_megatron.config.schema import Config
from scope_megatron.config.sections.data import DataSource

DATA_SUFFIXES = (".jsonl", ".parquet")
ONLY_SETS = ("subset", "split", "files")  # what a single file has not


def data_problems(config: Config, command: Command) -> Iterator[str]:
    """Every set that the command reads: there, readable as what it is said to be."""
    for key, sources in config.data.sources(training=command != "evaluate").items():
        if key != "data.train" and not evaluates(config, command) and command != "data":
            continue
        for source in sources:
            yield from (f"{key}: {problem}" for problem in source_problems(source))
            columns = source.columns
            if isinstance(columns, str) and (problem := _function(columns)):
                yield f"{key}: columns {problem}"
    if isinstance(config.data.columns, str) and (problem := _function(config.data.columns)):
        yield f"data.columns: {problem}"
    yield from _weights(config)
    yield from _teachers(config)


def source_problems(source: DataSource) -> Iterator[str]:
    """A path is there and is what it is said to be. Each yields `what; fix`."""
    if source.hub is not None:
        return
    path = source.path
    if source.revision:
        yield f"{path} is a path and has no revision {source.revision}; remove revision"
    if path.is_dir():
        if not any(path.rglob("*")):
            yield f"{path} is an empty folder; give one with data files"
        return
    if not path.is_file():
        yield f"{path} is no file; give a {' or '.join(DATA_SUFFIXES)} file"
    elif path.suffix not in DATA_SUFFIXES:
        yield f"{path} has an unknown format; use {' or '.join(DATA_SUFFIXES)}"
    elif path.stat().st_size == 0:
        yield f"{path} is empty; give a file with at least one row"
    else:
        for name in ONLY_SETS:
            if getattr(source, name) is not None:
                yield f"{path} is a single file, without {name}; remove {name}"


def _weights(config: Config) -> Iterator[str]:
    weighted = [source.weight is not None for source in config.data.train]
    if any(weighted) and not all(weighted):
        without = config.data.train[weighted.index(False)]
        yield f"data.train: {without} has no weight but others have; give all of them one, or none"
    for name, source in (config.data.eval or {}).items():
        if source.weight is not None:
            key = f"data.eval.{name}" if name else "data.eval"
            yield f"{key}: has a weight, which is for training sets; remove it"


def _teachers(config: Config) -> Iterator[str]:
    tags = config.model.teachers
    for source in config.data.train:
        if source.teacher is not None and tags is None:
            yield (
                f"data.train: {source} has the teacher {source.teacher} but model.teachers is not "
                "given; give it, or remove teacher"
            )
        elif source.teacher is not None and tags is not None and source.teacher not in tags:
            yield (
                f"data.train: {source} has the teacher {source.teacher}, which model.teachers does "
                f"not have; use {', '.join(tags)}"
            )
    for name, source in (config.data.eval or {}).items():
        if source.teacher is not None:
            key = f"data.eval.{name}" if name else "data.eval"
            yield f"{key}: has a teacher, which is for training sets; remove it"


def _function(text: str) -> str | None:
    """What is wrong with `module:function`, if anything. The current directory is searched too."""
    module_name, _, name = text.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the module is the user's: anything may go wrong in it
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return f"{text}: {module_name} cannot be imported ({reason}); correct it"
    if not callable(getattr(module, name, None)):
        return f"{text}: {module_name} has no function {name}; correct the name"
    return None
