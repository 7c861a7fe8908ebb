"""The schema as data: every key and its field, the key nearest to a wrong one, defaults as text."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from scope_megatron.algorithm import ALGORITHM_SPECS
from scope_megatron.config.schema import Config, Section


def section_of(field: FieldInfo) -> type[Section] | None:
    """The section's class if the field is a section, `X | None` included."""
    for kind in _alternatives(field.annotation):
        if isinstance(kind, type) and issubclass(kind, Section):
            return kind
    return None


def entry_section_of(field: FieldInfo) -> type[Section] | None:
    """The entries' class if the field is a list of sections, or sections under names."""
    for kind in _alternatives(field.annotation):
        for member in get_args(kind) if get_origin(kind) in (tuple, list, dict) else ():
            if isinstance(member, type) and issubclass(member, Section):
                return member
    return None


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def walk(section: type[Section] = Config, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """(dotted key, field) of every key, a section before its members."""
    for name, field in section.model_fields.items():
        yield prefix + name, field
        if member := section_of(field):
            yield from walk(member, f"{prefix}{name}.")


def algorithm_settings() -> Iterator[tuple[str, FieldInfo]]:
    """(dotted key, field) of the settings that an algorithm's record says the readers of."""
    named = {key for spec in ALGORITHM_SPECS.values() for key in spec.reads}
    for key, field in walk():
        if key in named or key.rpartition(".")[0] in ("algorithm", "objective", "teacher"):
            yield key, field


def field_of(key: str) -> FieldInfo | None:
    """The field of a dotted key, of an entry's too (`data.train.0.split`); None: no such key."""
    fields = dict(walk())
    if key in fields:
        return fields[key]
    section, _, rest = key.rpartition(".")
    while section:
        if section in fields and (entry := entry_section_of(fields[section])):
            return entry.model_fields.get(rest)
        section = section.rpartition(".")[0]
    return None


def nearest_key(key: str) -> str | None:
    """The known key that was probably meant: a sibling, the same name elsewhere, or a like one."""
    if entry := _entry_around(key):
        section, name = key.rpartition(".")[::2]
        close = difflib.get_close_matches(name, entry.model_fields, n=1)
        return f"{section}.{close[0]}" if close else None
    keys = [known for known, _ in walk()]
    parent, _, name = key.rpartition(".")
    siblings = [known for known in keys if known.rpartition(".")[0] == parent]
    names = [known.rpartition(".")[2] for known in siblings]
    if close := difflib.get_close_matches(name, names, n=1):
        return siblings[names.index(close[0])]
    elsewhere = [known for known in keys if known.rpartition(".")[2] == name]
    if elsewhere:
        return elsewhere[0]
    close = difflib.get_close_matches(key, keys, n=1)
    return close[0] if close else None


def _entry_around(key: str) -> type[Section] | None:
    """The class of the entry that a wrong key stands in."""
    fields = dict(walk())
    parents = [known for known in fields if key.startswith(f"{known}.")]
    return entry_section_of(fields[max(parents, key=len)]) if parents else None


def choices(field: FieldInfo) -> tuple[str, ...]:
    """The values a field may take, if they are all listed; null aside."""
    kinds = [kind for kind in _alternatives(field.annotation) if kind is not NoneType]
    listed = all(get_origin(kind) is Literal for kind in kinds)
    return tuple(value for kind in kinds for value in get_args(kind)) if listed else ()


def yaml_text(value: Any) -> str:
    """A default as the YAML file would spell it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)
