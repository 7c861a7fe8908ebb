"""Hub names in the settings: fetched, and replaced by what stands for them on this machine.

A model's name becomes the directory of its snapshot. A data set's name keeps its place and gets
its commit as revision: whoever reads its rows asks the cache again, which then needs no network.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scope_megatron.config.errors import ConfigError
from scope_megatron.config.rules_models import Command, evaluates
from scope_megatron.config.schema import Config
from scope_megatron.config.sections.data import DataSource, eval_setting
from scope_megatron.config.sections.model import ModelConfig, teacher_setting
from scope_megatron.hub import HubError, HubName, fetch, hub_name
from scope_megatron.hub.fetch import DATA_FILES, MODEL_FILES, TOKENIZER_FILES
from scope_megatron.hub.names import name_of_snapshot

MODELS = ("student", "teacher", "tokenizer")  # below model; teachers are entries


def has_names(config: Config, command: Command) -> bool:
    """Whether any setting that the command uses is a Hub name."""
    sources = _data_sources(config, command).values()
    named = any(source.hub is not None for group in sources for source in group)
    return named or any(True for _ in _model_names(config, command))


def looked_up(config: Config, command: Command) -> Config:
    """The configuration with every Hub name that the command needs fetched, or found there.

    Raises ConfigError with a line for each name that could not be had.
    """
    problems, models = list[str](), dict[str, Path]()
    found: dict[str, tuple[DataSource, ...]] = {}
    for key, name, files in _model_names(config, command):
        with _collected(key, problems):
            models[key] = fetch(name, "model", files, key)
    for setting, sources in _data_sources(config, command).items():
        with _collected(setting, problems):
            found[setting] = tuple(at_commit(source, setting) for source in sources)
    if problems:
        raise ConfigError(*problems)
    data = config.data
    sets = {
        name: found.get(eval_setting(name), (source,))[0]
        for name, source in (data.eval or {}).items()
    }
    changed = {"train": found.get("data.train", data.train), "eval": sets or None}
    return config.model_copy(
        update={"model": _with_paths(config, models), "data": data.model_copy(update=changed)}
    )


def _with_paths(config: Config, paths: dict[str, Path]) -> ModelConfig:
    """``model`` with the directories of these settings in the place of their names."""
    model = config.model
    update: dict[str, Any] = {
        name: paths[key] for name in MODELS if (key := f"model.{name}") in paths
    }
    if model.teachers is not None:
        update["teachers"] = {
            tag: entry.model_copy(update={"path": paths.get(teacher_setting(tag), entry.path)})
            for tag, entry in model.teachers.items()
        }
    changed: ModelConfig = model.model_copy(update=update)
    return changed


@contextmanager
def _collected(setting: str, problems: list[str]) -> Iterator[None]:
    try:
        yield
    except HubError as error:
        problems.append(f"{setting}: {error}")


def at_commit(source: DataSource, setting: str) -> DataSource:
    """The set, fetched and at the commit that its Hub name has now. Raises HubError."""
    if source.hub is None:
        return source
    folder = fetch(source.hub, "dataset", source.files or DATA_FILES, setting)
    pinned_source: DataSource = source.model_copy(
        update={"name": source.hub.repo, "revision": folder.name}
    )
    return pinned_source


def pinned(config: Config) -> list[str]:
    """``key=value`` overrides: the Hub names of a loaded configuration at the commits that were
    found. Its ranks see those, whatever happens on the hub meanwhile, and ask it nothing."""
    overrides = []
    for key in MODELS:
        path = getattr(config.model, key)
        if path is not None and (name := name_of_snapshot(path)):
            overrides.append(f"model.{key}={name}")
    entries = config.model.teachers or {}
    if any(name_of_snapshot(entry.path) for entry in entries.values()):
        teachers = config.model.model_dump(mode="json")["teachers"]
        overrides.append(f"model.teachers={json.dumps(teachers)}")
    values = config.data.model_dump(mode="json")
    for key, sources in (("train", config.data.train), ("eval", (config.data.eval or {}).values())):
        if any(source.hub is not None for source in sources):
            overrides.append(f"data.{key}={json.dumps(values[key])}")
    return overrides


def _model_names(
    config: Config, command: Command
) -> Iterator[tuple[str, HubName, tuple[str, ...]]]:
    """(setting, name, files) of the models that the command reads."""
    model = config.model
    wanted = {
        "model.student": (model.student, MODEL_FILES),
        "model.tokenizer": (model.tokenizer, TOKENIZER_FILES),
    }
    if command == "data":  # the tokenizer alone
        key = "model.tokenizer" if model.tokenizer else "model.student"
        wanted = {key: (wanted[key][0], TOKENIZER_FILES)}
    elif command == "train":
        for tag, entry in config.teachers.items():
            wanted[teacher_setting(tag)] = (entry.path, MODEL_FILES)
    for key, (path, files) in wanted.items():
        if path is not None and (name := hub_name(path)):
            yield key, name, files


def _data_sources(config: Config, command: Command) -> dict[str, tuple[DataSource, ...]]:
    """The sets that the command reads, under their settings."""
    sources = config.data.sources(training=command != "evaluate")
    if not evaluates(config, command) and command != "data":
        sources = {key: value for key, value in sources.items() if key == "data.train"}
    return sources
