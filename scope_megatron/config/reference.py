"""The table of every key, as Markdown, from the schema's own descriptions."""

from __future__ import annotations

import inspect

from pydantic.fields import FieldInfo

from scope_megatron.config.keys import choices, entry_section_of, section_of, yaml_text
from scope_megatron.config.schema import Config, Section

INTRODUCTION = """\
# Configuration

One YAML file describes a run; `key.sub=value` arguments after it override single keys
(`scope-megatron train configs/quickstart.yaml objective.tau=2.0`). Unknown keys, values of the
wrong type and settings that contradict each other, the models or the data are refused before
anything is loaded; `scope-megatron check FILE` does only that, and prints the resolved settings.

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
            lines.append(f"| `{key}` | {_default(field)} | {_meaning(field)} |")
            entry = entry_section_of(field)
            if entry and entry not in entries:
                entries.append(entry)
    subsections += [_section(f"an entry of {prefix}", entry) for entry in entries]
    return "\n".join([*lines, "", *subsections])


def _default(field: FieldInfo) -> str:
    return "required" if field.is_required() else f"`{yaml_text(field.default)}`"


def _meaning(field: FieldInfo) -> str:
    text = field.description or ""
    if allowed := choices(field):
        text = f"one of {', '.join(f'`{value}`' for value in allowed)}. {text}"
    return text.replace("|", "\\|")
