"""Hub names in the settings: fetched, and replaced by what stands for them on this machine.

A model's name becomes the directory of its snapshot. A data set's name keeps its place and gets
its commit as revision: whoever reads its rows asks the cache again, which then needs no network.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scope_megatron.config.errors import ConfigError
from scope_megatron.config.rules_models import Command, evaluates
from scope_megatron.config.schema import Config
from scope_megatron.config.sections.data import DataSource, eval_setting
from scope_megatron.hub import HubError, HubName, fetch, hub_name
from scope_megatron.hub.fetch import DATA_FILES, MODEL_FILES, TOKENIZER_FILES
from scope_megatron.hub.names import name_of_snapshot


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
        with _collected(f"model.{key}", problems):
            models[key] = fetch(name, "model", files, f"model.{key}")
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
        update={
            "model": config.model.model_copy(update=models),
            "data": data.model_copy(update=changed),
        }
    )


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
    for key in ("student", "teacher", "tokenizer"):
        path = getattr(config.model, key)
        if path is not None and (name := name_of_snapshot(path)):
            overrides.append(f"model.{key}={name}")
    values = config.data.model_dump(mode="json")
    for key, sources in (("train", config.data.train), ("eval", (config.data.eval or {}).values())):
        if any(source.hub is not None for source in sources):
            overrides.append(f"data.{key}={json.dumps(values[key])}")
    return overrides


def _model_names(
    config: Config, command: Command
) -> Iterator[tuple[str, HubName, tuple[str, ...]]]:
    """(key below model, name, files) of the models that the command reads."""
    wanted = {"student": MODEL_FILES, "tokenizer": TOKENIZER_FILES}
    if command == "data":  # the tokenizer alone
        wanted = {"tokenizer" if config.model.tokenizer else "student": TOKENIZER_FILES}
    elif command == "train" and config.loads_teacher:
        wanted["teacher"] = MODEL_FILES
    for key, files in wanted.items():
        path = getattr(config.model, key)
        if path is not None and (name := hub_name(path)):
            yield key, name, files


def _data_sources(config: Config, command: Command) -> dict[str, tuple[DataSource, ...]]:
    """The sets that the command reads, under their settings."""
    sources = config.data.sources(training=command != "evaluate")
    if not evaluates(config, command) and command != "data":
        sources = {key: value for key, value in sources.items() if key == "data.train"}
    return sources
