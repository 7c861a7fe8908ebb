"""Other people's columns as ours: a mapping of names, a function of the user's, a filter."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Record = Mapping[str, Any]


@dataclass(frozen=True)
class RowShape:
    """How the raw rows of a set become ours. Plain values: workers receive it."""

    columns: Mapping[str, str] | str | None = None  # ours -> theirs; module:function; as they are
    filter: Mapping[str, Any] = field(default_factory=dict)
    teacher: str = ""  # of rows without a column of that name

    def converter(self) -> Callable[[Record], Record | None]:
        """The function from a raw row to ours, None for one that the user's function leaves out.

        Raises ValueError with the reason a row cannot be used.
        """
        if self.columns is None:
            return lambda record: record
        if isinstance(self.columns, str):
            return _called(self.columns)
        mapping = dict(self.columns)
        return lambda record: {**record, **_mapped(record, mapping)}

    def keeps(self, record: Record) -> bool:
        """Whether the filter lets a raw row through."""
        return all(_matches(reach(record, name), wanted) for name, wanted in self.filter.items())

    def needed(self) -> list[tuple[str, str]]:
        """(setting, column) of the raw columns that must be there."""
        mapped = self.columns.values() if isinstance(self.columns, Mapping) else ()
        found = [("columns", column) for column in mapped]
        return found + [("filter", column) for column in self.filter]


def require_shape(shape: RowShape, columns: Iterable[str], name: str, setting: str) -> None:
    """Raise ValueError unless the raw columns that the settings name are there."""
    held = list(columns)
    for key, column in shape.needed():
        if column not in held and column.partition(".")[0] not in held:
            raise ValueError(
                f"{setting}: {name} has no column {column} that its {key} names; it has: "
                f"{', '.join(held)}"
            )


def reach(record: Record, column: str) -> Any:
    """The value of a column; dots reach into nested mappings and lists; None if it is not there."""
    if column in record:
        return record[column]
    value: Any = record
    for part in column.split("."):
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    return value


def load_function(text: str) -> Callable[[dict[str, Any]], Any]:
    """`module:function`; the current directory is searched too. Errors are the module's own."""
    module_name, _, name = text.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    function: Callable[[dict[str, Any]], Any] = getattr(importlib.import_module(module_name), name)
    return function


def _mapped(record: Record, mapping: Mapping[str, str]) -> dict[str, Any]:
    values = {ours: reach(record, theirs) for ours, theirs in mapping.items()}
    if "answer" in values and values["answer"] is None:
        values["reward_model"] = None  # the column that was asked for decides
    return values


def _called(text: str) -> Callable[[Record], Record | None]:
    function = load_function(text)

    def convert(record: Record) -> Record | None:
        try:
            ours = function(dict(record))
        except Exception as error:  # the function is the user's: anything may go wrong in it
            raise ValueError(f"{text} raised {type(error).__name__}: {error}") from error
        if ours is not None and not isinstance(ours, Mapping):
            raise ValueError(f"{text} returned {type(ours).__name__}, not a mapping or None")
        return ours

    return convert


def _matches(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, Mapping):
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        low, high = wanted.get("min"), wanted.get("max")
        return (low is None or value >= low) and (high is None or value <= high)
    options = wanted if isinstance(wanted, list) else [wanted]
    return any(value == option and type(value) is type(option) for option in options) or any(
        _is_number(value) and _is_number(option) and value == option for option in options
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
