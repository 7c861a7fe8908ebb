"""YAML file + `key=value` overrides -> Config, or a ConfigError that names each wrong key."""

from __future__ import annotations

import difflib
import re
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from scope_megatron.config import names
from scope_megatron.config.errors import ConfigError, shown
from scope_megatron.config.keys import (
    choices,
    entry_section_of,
    field_of,
    nearest_key,
    section_of,
    walk,
    yaml_text,
)
from scope_megatron.config.layout import AUTO_SIZES, resolve_auto
from scope_megatron.config.rules import (
    Command,
    file_problems,
    local_problems,
    setting_problems,
)
from scope_megatron.config.schema import Config, ParallelConfig, Section
from scope_megatron.machine import choose
from scope_megatron.machine.device import SETTINGS

WRONG_TYPE = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "string_too_short": "text with at least one character",
    "model_type": "a section of `key: value` lines",
}
OUT_OF_BOUNDS = {
    "greater_than": (">", "gt"),
    "greater_than_equal": (">=", "ge"),
    "less_than": ("<", "lt"),
    "less_than_equal": ("<=", "le"),
}


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, with `5e-5` read as a number and a key given twice refused."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                problem = "a key must be a word"
            elif key.value in seen:
                problem = f"key {key.value!r} is given twice"
            else:
                seen.add(key.value)
                continue
            raise yaml.constructor.ConstructorError(problem=problem, problem_mark=key.start_mark)
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep)
        return mapping


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def load_config(
    path: Path | str,
    overrides: Sequence[str] = (),
    *,
    check_files: bool = True,
    command: Command = "train",
) -> Config:
    """Read, override, resolve what is `auto` for the machine, validate.

    ``check_files=False`` leaves out every rule that looks at models, data or the output
    directory. ``command="evaluate"`` asks for data.eval and does not mind a finished run, "data"
    looks at the rows and the tokenizer alone. Hub names are looked up, and fetched, once all that
    can be checked without them is right; see :mod:`scope_megatron.config.names`.
    Raises ConfigError.
    """
    values = _fill_empty_sections(read_values(path, overrides), Config)
    config = _validate(_for_this_machine(values))
    problems = setting_problems(config, command)
    if check_files and names.has_names(config, command):
        problems += local_problems(config, command)
        if not problems:
            config = _resized(names.looked_up(config, command), values)
            problems = setting_problems(config, command) + file_problems(config, command)
    elif check_files:
        problems += file_problems(config, command)
    if problems:
        raise ConfigError(*problems)
    return config


def read_values(path: Path | str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The file's nested values with the overrides, as they are given. Raises ConfigError."""
    values = _read(Path(path))
    for override in overrides:
        _apply(values, override)
    return values


def _resized(config: Config, values: dict[str, Any]) -> Config:
    """Sizes of ``parallel`` that were `auto`, once the models' shapes can be read."""
    paths: dict[str, Any] = {n: str(path) for n, path in config.model if isinstance(path, Path)}
    if config.model.teachers:
        paths["teachers"] = {t: str(entry.path) for t, entry in config.model.teachers.items()}
    parallel = _for_this_machine(values | {"model": paths}).get("parallel", {})
    return config.model_copy(update={"parallel": ParallelConfig.model_validate(parallel)})


def _for_this_machine(values: dict[str, Any]) -> dict[str, Any]:
    """``platform.device`` and the sizes of ``parallel`` that are `auto` get their values."""
    platform = values.get("platform", {})
    if not isinstance(platform, dict) or platform.get("device", "auto") not in SETTINGS:
        return values  # refused by the schema
    machine = choose(platform.get("device", "auto"))
    if not machine.problem:
        values = values | {"platform": platform | {"device": machine.device}}
    return resolve_auto(values, machine)


def _read(path: Path) -> dict[str, Any]:
    try:
        values = _parse(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"{path}: cannot be read ({reason}); give a YAML file") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: {_yaml_reason(error)}; correct the YAML") from None
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds no settings; write `key: value` lines")
    return values


def _parse(text: str) -> Any:
    """Raises yaml.YAMLError alone: PyYAML lets other errors through for some wrong scalars."""
    try:
        return yaml.load(text, Loader=_Loader)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise yaml.YAMLError(str(error)) from error


def _yaml_reason(error: yaml.YAMLError) -> str:
    """`line 3: mapping values are not allowed here`, on one line."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or "not valid YAML"
    return f"line {mark.line + 1}: {problem}" if mark else problem


def _apply(values: dict[str, Any], override: str) -> None:
    """Set one `key.sub=value` in the nested values."""
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key:
        raise ConfigError(f"{override}: is not an override; write key=value, as objective.tau=2.0")
    try:
        value = _parse(text)
    except yaml.YAMLError:
        raise ConfigError(f"{key}: {shown(text)} is not a YAML value; quote it") from None
    *parents, name = key.split(".")
    for depth, parent in enumerate(parents):
        inner = values.get(parent)
        if inner is None:
            inner = values[parent] = {}
        if not isinstance(inner, dict):
            section = ".".join(parents[: depth + 1])
            raise ConfigError(
                f"{section}: is {shown(inner)} and has no key {key[len(section) + 1 :]}; "
                f"set {section} itself or correct the key"
            )
        values = inner
    values[name] = value


def _fill_empty_sections(values: dict[str, Any], section: type[Section]) -> dict[str, Any]:
    """A section whose lines are all commented out is null in YAML: it has its defaults."""
    filled = dict(values)
    for name, field in section.model_fields.items():
        member = section_of(field)
        if member is None or name not in filled:
            continue
        optional = field.annotation is not member
        if filled[name] is None and not optional:
            filled[name] = {}
        if isinstance(filled[name], dict):
            filled[name] = _fill_empty_sections(filled[name], member)
    return filled


def _validate(values: dict[str, Any]) -> Config:
    problems = [_unknown(key) for key in _unknown_keys(values, Config)]
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        problems += [
            _translate(dict(item)) for item in error.errors() if item["type"] != "extra_forbidden"
        ]
        raise ConfigError(*problems) from None
    assert not problems, "pydantic refuses every unknown key"
    return config


def _unknown_keys(values: dict[str, Any], section: type[Section], prefix: str = "") -> list[str]:
    unknown = []
    for name, value in values.items():
        field = section.model_fields.get(name) if isinstance(name, str) else None
        if field is None:
            unknown.append(f"{prefix}{name}")
        elif (member := section_of(field)) and isinstance(value, dict):
            unknown += _unknown_keys(value, member, f"{prefix}{name}.")
        elif entry := entry_section_of(field):
            for label, item in _entries(value):
                unknown += _unknown_keys(item, entry, f"{prefix}{name}.{label}.")
    return unknown


def _entries(value: Any) -> list[tuple[str, dict[str, Any]]]:
    """The mappings in a list of entries, or in entries under names, each with its place."""
    if isinstance(value, dict) and not isinstance(value.get("name"), str):
        named = [(str(name), item) for name, item in value.items()]
    else:
        items = value if isinstance(value, list) else [value]
        named = [(str(place), item) for place, item in enumerate(items)]
    return [(name, item) for name, item in named if isinstance(item, dict)]


def _unknown(key: str) -> str:
    nearest = nearest_key(key)
    fix = f"did you mean {nearest}?" if nearest else "remove it"
    return f"unknown key {key}; {fix}"


def _translate(item: dict[str, Any]) -> str:
    """One of pydantic's errors in this project's words."""
    key = ".".join(str(part) for part in item["loc"])
    kind, value = item["type"], item["input"]
    if kind == "missing":
        return _missing(key)
    if kind == "value_error":
        return f"{key}: {item['ctx']['error']}"
    if kind == "literal_error":
        return _not_a_choice(key, value)
    if kind in OUT_OF_BOUNDS:
        sign, name = OUT_OF_BOUNDS[kind]
        limit = f"{sign} {item['ctx'][name]:g}"
        return f"{key}: is {shown(value)} but must be {limit}; {_default(key)}"
    if kind in WRONG_TYPE:
        auto = " or auto" if key in AUTO_SIZES else ""
        return f"{key}: {shown(value)} is not {WRONG_TYPE[kind]}{auto}; {_default(key)}"
    return f"{key}: {shown(value)}: {item['msg']}; {_default(key)}"


def _missing(key: str) -> str:
    field = field_of(key)
    if field is not None and (section := section_of(field)):
        required = [name for name, member in walk(section, f"{key}.") if member.is_required()]
        return f"{key}: the section is missing; add it with {', '.join(required)}"
    return f"{key}: is missing; add it to the file or pass {key}=VALUE"


def _not_a_choice(key: str, value: Any) -> str:
    field = field_of(key)
    allowed = choices(field) if field else ()
    close = difflib.get_close_matches(str(value), allowed, n=1)
    fix = f"did you mean {close[0]}?" if close else _default(key)
    return f"{key}: {shown(value)} is not one of {', '.join(allowed)}; {fix}"


def _default(key: str) -> str:
    """The fix that always exists: the default, or that a value must be given."""
    field = field_of(key)
    if field is None or field.is_required():
        return f"set {key} in the file or pass {key}=VALUE"
    if section_of(field):
        return f"write its keys below {key}, or leave it out for the defaults"
    return f"the default is {yaml_text(field.default)}"
