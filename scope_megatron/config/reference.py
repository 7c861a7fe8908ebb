"""The table of every key, as Markdown, from the schema's own descriptions."""

from __future__ import annotations

import inspect

from pydantic.fields import FieldInfo

from scope_megatron.algorithm import ALGORITHM_SPECS, readers_of
from scope_megatron.config.keys import choices, entry_section_of, section_of, walk, yaml_text
from scope_megatron.config.schema import Config, Section
from scope_megatron.config.sections.read_with import READ_WITH

INTRODUCTION = """\
# Configuration

One YAML file describes a run; `key.sub=value` arguments after it override single keys
(`scope-megatron train configs/quickstart.yaml objective.tau=2.0`). Unknown keys, values of the
wrong type, settings that the chosen algorithm does not read, and settings that contradict each
other, the models or the data are refused before anything is loaded; `scope-megatron check FILE`
does only that, and prints the resolved settings. A setting that stands there with its default is
never refused.

This page is generated from the schema: `python -m tools.config_reference`.
"""


def reference_markdown() -> str:
    """The whole page: one table of key, default and meaning per section."""
    parts = [INTRODUCTION, _section("", Config)]
    return "\n".join(parts)


def _section(prefix: str, section: type[Section]) -> str:
    """The section's table, then its subsections'."""
    title = f"## {prefix}" if prefix else "## Top level"
    lines = [title, "", inspect.getdoc(section) or "", "", "| key | default | meaning |"]
    lines.append("|---|---|---|")
    subsections, entries = [], list[type[Section]]()
    for name, field in section.model_fields.items():
        key = name if not prefix or prefix.startswith("an entry") else f"{prefix}.{name}"
        if member := section_of(field):
            subsections.append(_section(key, member))
        else:
            lines.append(f"| `{key}` | {_default(field)} | {_meaning(key, field)} |")
            entry = entry_section_of(field)
            if entry and entry not in entries:
                entries.append(entry)
    subsections += [_section(f"an entry of {prefix}", entry) for entry in entries]
    return "\n".join([*lines, "", *subsections])


def _default(field: FieldInfo) -> str:
    return "required" if field.is_required() else f"`{yaml_text(field.default)}`"


def _meaning(key: str, field: FieldInfo) -> str:
    text = field.description or ""
    if allowed := choices(field):
        text = f"one of {', '.join(f'`{value}`' for value in allowed)}. {text}"
    if readers := _readers(key):
        text = f"{text}. Read by {readers}"
    if key in READ_WITH:
        text = f"{text}. Read with `{READ_WITH[key]}`"
    return text.replace("|", "\\|")


def _readers(key: str) -> str:
    """The algorithms that read a setting, where not all do, with what they need for it beyond
    defaults."""
    defaults = {name: field.default for name, field in walk()}
    alike: dict[str, list[str]] = {}
    for name in readers_of(key):
        where = ALGORITHM_SPECS[name].reads[key]
        needed = " and ".join(f"`{one}`" for one in where if not one.holds(defaults[one.key]))
        alike.setdefault(f" with {needed}" if needed else "", []).append(name)
    others = ALGORITHM_SPECS.keys() - readers_of(key)
    if len(others) <= 1 and alike.keys() == {""}:
        return f"all but {others.pop()}" if others else ""
    return "; ".join(f"{', '.join(names)}{where}" for where, names in alike.items())
