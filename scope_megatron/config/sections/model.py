"""The section of the configuration on the models and the tokenizer they share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainSerializer

from scope_megatron.config.sections.section import Section
from scope_megatron.config.sections.teacher import TeacherParallel
from scope_megatron.hub import portable

TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9_./-]*")
EVERY_ROW = ""  # the tag of model.teacher, which teaches every row


def _to_path(value: Any) -> Any:
    """A non-empty string is a path, `~` standing for the home directory."""
    if isinstance(value, Path):
        return value
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{value!r} is not a path; give a path as text")
    return Path(value).expanduser()


AnyPath = Annotated[Path, BeforeValidator(_to_path)]
# A directory, or a Hub name until the loader puts the directory of its snapshot in its place. It is
# written down as NAME@COMMIT, which another machine can read.
ModelPath = Annotated[AnyPath, PlainSerializer(portable, return_type=str, when_used="json")]


class TeacherEntry(Section):
    """One of several teachers. As text, its path alone."""

    path: ModelPath = Field(description="a Hugging Face directory or a Hub name, as model.teacher")
    offload: Literal["none", "cpu"] | None = Field(
        None, description="as teacher.offload, for this one; null: what that says"
    )
    dtype: Literal["float32", "bfloat16", "auto"] | None = Field(
        None, description="as teacher.dtype, for this one; null: what that says"
    )
    parallel: TeacherParallel | None = Field(
        None, description="as teacher.parallel, for this one; null: what that says"
    )


def _to_teachers(value: Any) -> Any:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise ValueError(f"{value!r} gives no tags; write {{math: PATH, code: PATH}}")
    if not value:
        raise ValueError("is empty; give at least one teacher, or model.teacher")
    for tag in value:
        if not isinstance(tag, str) or not TAG.fullmatch(tag) or tag == "name":
            raise ValueError(f"{tag!r} cannot be a tag; use letters, digits, _ . / and -")
    entries = {tag: _to_entry(one) for tag, one in value.items()}
    return entries


def _to_entry(value: Any) -> Any:
    return value if isinstance(value, dict | TeacherEntry) else {"path": value}


class ModelConfig(Section):
    """The models and the tokenizer they share."""

    student: ModelPath = Field(
        description="the model that is trained: a Hugging Face directory (config.json, "
        "*.safetensors, tokenizer.json or tokenizer.model) or a Hub name, NAME or NAME@REVISION "
        "(docs/hub.md)"
    )
    teacher: ModelPath | None = Field(
        None,
        description="the frozen teacher, a directory or a Hub name, with the student's token map; "
        "it may stand where none is read (grpo, kd, teacher.source=student, "
        "objective.incorrect=constant), so that one file serves all algorithms",
    )
    teachers: Annotated[dict[str, TeacherEntry] | None, BeforeValidator(_to_teachers)] = Field(
        None,
        description="several teachers by tag, {math: PATH, code: PATH} or entries as below, in the "
        "place of model.teacher. A row's tag is its column `teacher`, else the teacher of its set "
        "in data.train, else its data_source; a row without a teacher is refused",
    )
    tokenizer: ModelPath | None = Field(
        None,
        description="the tokenizer, a directory, a Hub name or a sentencepiece .model file; "
        "null: the student's",
    )
    dtype: Literal["float32", "bfloat16", "auto"] = Field(
        "auto", description="parameters' type; auto: bfloat16 on CUDA, float32 on CPU"
    )


def teacher_setting(tag: str) -> str:
    """The key of the teacher with a tag."""
    return "model.teacher" if tag == EVERY_ROW else f"model.teachers.{tag}"
