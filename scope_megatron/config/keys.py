"""The schema as data: every key and its field, the key nearest to a wrong one, defaults as text."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from scope_megatron.config.schema import Config, Section


def section_of(field: FieldInfo) -> type[Section] | None:
    """The section's class if the field is a section, `X | None` included."""
    for kind in (field.annotation, *get_args(field.annotation)):
        if isinstance(kind, type) and issubclass(kind, Section):
            return kind
    return None


def walk(section: type[Section] = Config, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """(dotted key, field) of every key, a section before its members."""
    for name, field in section.model_fields.items():
        yield prefix + name, field
        if member := section_of(field):
            yield from walk(member, f"{prefix}{name}.")


def field_of(key: str) -> FieldInfo | None:
    """The field of a dotted key; None if there is no such key."""
    return dict(walk()).get(key)


def nearest_key(key: str) -> str | None:
    """The known key that was probably meant: a sibling, the same name elsewhere, or a like one."""
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


def choices(field: FieldInfo) -> tuple[str, ...]:
    """The values a field may take, if they are listed."""
    if get_origin(field.annotation) is Literal:
        return get_args(field.annotation)
    return ()


def yaml_text(value: Any) -> str:
    """A default as the YAML file would spell it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)
