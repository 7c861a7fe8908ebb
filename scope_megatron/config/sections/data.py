"""The section of the configuration that says where prompts come from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    field_serializer,
    field_validator,
    model_serializer,
    model_validator,
)

from scope_megatron.config.sections.section import Section
from scope_megatron.hub import HubName, hub_name

SET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
# the columns of a row
OURS = ("prompt", "answer", "response", "data_source", "verifier", "teacher")
SINGLE = ""  # the name of an evaluation set that was given without one

Scalar = str | int | float | bool
Columns = dict[str, str] | str  # ours -> theirs, or module:function


def _to_source(value: Any) -> Any:
    """A path or name as text stands for a source with nothing else."""
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, dict | DataSource):
        return value
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{value!r} is not a path; give a path as text")
    return {"name": value}


def _to_sources(value: Any) -> Any:
    values = value if isinstance(value, list | tuple) else [value]
    if not values:
        raise ValueError("the list is empty; give at least one path")
    return tuple(_to_source(item) for item in values)


def _to_sets(value: Any) -> Any:
    """One source, or several under the names of their metrics."""
    if value is None:
        return None
    if isinstance(value, list | tuple):
        raise ValueError("is a list; give every set a name: {aime: PATH, math500: PATH}")
    if not isinstance(value, dict) or isinstance(value.get("name"), str) or not value:
        return {SINGLE: _to_source(value)}
    for name in value:
        if name != SINGLE and not (isinstance(name, str) and SET_NAME.fullmatch(name)):
            raise ValueError(f"{name!r} cannot be a set's name; use letters, digits, _ . and -")
    return {name: _to_source(source) for name, source in value.items()}


def _to_columns(value: Any) -> Any:
    """`{ours: theirs}` or `module:function`, refused here in this project's words."""
    if isinstance(value, str):
        if not FUNCTION.fullmatch(value):
            raise ValueError(
                f"{value!r} is no module:function; write one, as my_rows:convert, or a mapping as "
                "{prompt: problem, answer: solution}"
            )
    elif isinstance(value, dict):
        for name, column in value.items():
            if name not in OURS:
                raise ValueError(f"{name!r} is no column of ours; map to {', '.join(OURS)}")
            if not isinstance(column, str) or not column:
                raise ValueError(f"{name} is mapped to {column!r}; give the name of a column")
    elif value is not None:
        raise ValueError(f"{value!r} is neither a mapping of columns nor a module:function")
    return value


def _to_filter(value: Any) -> Any:
    """{column: value, [values] or {min, max}}."""
    if not isinstance(value, dict):
        return value
    for column, wanted in value.items():
        if isinstance(wanted, dict):
            bounds = [wanted[name] for name in wanted if name in ("min", "max")]
            right = len(bounds) == len(wanted) > 0 and all(_is_number(bound) for bound in bounds)
        else:
            options = wanted if isinstance(wanted, list) else [wanted]
            right = bool(options) and all(isinstance(option, Scalar) for option in options)
        if not right:
            raise ValueError(
                f"{column}: {wanted!r} selects no rows; give a value, a list of values, or min "
                "and max"
            )
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


MappedColumns = Annotated[Columns | None, BeforeValidator(_to_columns)]
Filter = Annotated[dict[str, Any], BeforeValidator(_to_filter)]


class DataSource(Section):
    """One set of rows. As text, `NAME` or `NAME@REVISION`, when nothing else is said of it."""

    name: str = Field(
        min_length=1,
        description=".jsonl or .parquet file, a folder of data files, or a data set's Hub name",
    )
    revision: str | None = Field(
        None, min_length=1, description="Hub name: branch, tag or commit; null: main"
    )
    subset: str | None = Field(
        None, min_length=1, description="Hub name or folder: the configuration of a data set"
    )
    split: str | None = Field(
        None,
        min_length=1,
        description="Hub name or folder: the split; null: train for data.train, for data.eval "
        "test, or validation, or the only one there is",
    )
    files: Annotated[
        tuple[str, ...] | None,
        BeforeValidator(
            lambda value: (
                tuple(value)
                if isinstance(value, list)
                else (value,)
                if isinstance(value, str)
                else value
            )
        ),
    ] = Field(
        None,
        description="Hub name or folder: only files that match one of these patterns; null: all "
        "data files",
    )
    columns: MappedColumns = Field(None, description="as data.columns, for this set alone")
    filter: Filter = Field(
        {},
        description="only rows with these values: {column: value, or [values], or {min, max}}, "
        "by the columns' names in the file",
    )
    weight: float | None = Field(
        None,
        gt=0,
        description="data.train: share of the prompts that come from this set, relative to the "
        "other sets' (all have one, or none); null: every row once an epoch",
    )

    teacher: str | None = Field(
        None,
        min_length=1,
        description="data.train: the tag in model.teachers of this set's rows without a column "
        "`teacher`; null: their data_source",
    )

    @model_validator(mode="after")
    def _one_revision(self) -> DataSource:
        name = hub_name(self.name)
        if self.revision and name and "@" in self.name:
            raise ValueError(f"{self.name} has a revision twice; remove one")
        return self

    @property
    def hub(self) -> HubName | None:
        """The data set's Hub name at its revision; None for a path."""
        name = hub_name(self.name)
        return name.at(self.revision) if name and self.revision else name

    @property
    def path(self) -> Path:
        """Where a set that is no Hub name lies."""
        return Path(self.name).expanduser()

    def __str__(self) -> str:
        name = self.hub
        return str(name if name else self.path)

    @model_serializer(mode="wrap")
    def _short(self, handler: SerializerFunctionWrapHandler) -> Any:
        """Text again where text said it all."""
        fields = type(self).model_fields
        values = {k: v for k, v in handler(self).items() if getattr(self, k) != fields[k].default}
        name = self.hub
        if name and self.revision:
            del values["revision"]
            values["name"] = str(name)
        return values["name"] if len(values) == 1 else values


class DataConfig(Section):
    """The prompts."""

    train: Annotated[tuple[DataSource, ...], BeforeValidator(_to_sources)] = Field(
        description="training data, one or a list: paths of .jsonl or .parquet files, Hub names, "
        "or entries as below (docs/hub.md)"
    )
    eval: Annotated[dict[str, DataSource] | None, BeforeValidator(_to_sets)] = Field(
        None,
        description="evaluation data, as data.train; several sets by name, {aime: ..., math500: "
        "...}; needed when evaluation is on",
    )
    max_prompt_tokens: int = Field(
        ge=1,
        description="longest prompt, chat template included; overlong says what becomes of others",
    )
    overlong: Literal["drop", "cut"] = Field(
        "drop",
        description="drop: a longer prompt is left out; cut: it loses its end, the template's "
        "opening of the response included (as in the published code)",
    )
    suffix: str | None = Field(
        None, description="text put at the end of every prompt, the last message; null: none"
    )
    shuffle: bool = Field(True, description="a new order of the training rows in every epoch")
    system_prompt: str | None = Field(
        None, description="system message put before every prompt; null: none"
    )
    columns: MappedColumns = Field(
        None,
        description="our columns from theirs, {prompt: problem, answer: solution}, dots reaching "
        "into nested ones; or module:function, a function of yours that turns a row into ours; "
        "null: the columns are named as ours",
    )
    chat_template_kwargs: dict[str, Any] = Field(
        {}, description="variables for the chat template, {enable_thinking: false}"
    )
    cache_dir: str | None = Field(
        None,
        min_length=1,
        description="where tokenised rows are kept between runs; null: "
        "SCOPE_MEGATRON_CACHE, or ~/.cache/scope_megatron",
    )

    @field_validator("chat_template_kwargs")
    @classmethod
    def _not_ours(cls, values: dict[str, Any]) -> dict[str, Any]:
        taken = {"conversation", "messages", "tokenize", "add_generation_prompt", "chat_template"}
        for name in taken & values.keys():
            raise ValueError(f"{name} is set by the trainer; remove it")
        return values

    @field_serializer("eval")
    def _one_or_sets(self, sets: dict[str, DataSource] | None) -> Any:
        if sets is None:
            return None
        values = {name: source.model_dump(mode="json") for name, source in sets.items()}
        return values[SINGLE] if list(values) == [SINGLE] else values

    def columns_of(self, source: DataSource) -> Columns | None:
        return self.columns if source.columns is None else source.columns

    def sources(self, training: bool = True) -> dict[str, tuple[DataSource, ...]]:
        """The sets under their settings: data.train, data.eval or data.eval.NAME."""
        found = {"data.train": self.train} if training else {}
        for name, source in (self.eval or {}).items():
            found[eval_setting(name)] = (source,)
        return found


def eval_setting(name: str) -> str:
    return f"data.eval.{name}" if name else "data.eval"
