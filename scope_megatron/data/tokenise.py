"""A chunk of raw rows as prompts in columns: what a worker does."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import pyarrow

from scope_megatron.config.sections.verifier import verifier_for
from scope_megatron.data.code_tests import read_tests
from scope_megatron.data.columns import RowShape
from scope_megatron.data.readers import Chunk
from scope_megatron.data.rows import Row, row_of
from scope_megatron.data.tokenizer import Message, Tokenizer
from scope_megatron.types import accepted

SCHEMA = pyarrow.schema(
    [
        ("token_ids", pyarrow.list_(pyarrow.int32())),
        ("answers", pyarrow.list_(pyarrow.string())),
        ("text", pyarrow.string()),
        ("source", pyarrow.string()),
        ("verifier", pyarrow.string()),
        ("response_ids", pyarrow.list_(pyarrow.int32())),
        ("teacher", pyarrow.string()),
        ("privileged_ids", pyarrow.list_(pyarrow.int32())),
    ]
)


@dataclass(frozen=True)
class PromptRecipe:
    """How rows become prompts, beside the tokenizer."""

    max_prompt_tokens: int
    system_prompt: str | None = None  # opens every conversation without a system message
    need_response: bool = False  # supervised training
    suffix: str | None = None  # ends the last message
    cut: bool = False  # a longer prompt is cut on the right, not left out
    verifier: str = "auto"  # verifier.name
    privileged: str | None = None  # what a teacher reads after the last message, with {answer}


@dataclass
class TokenisedChunk:
    """What became of a chunk."""

    prompts: pyarrow.RecordBatch
    rows: bytes  # the prompts' canonical text, which the fingerprint is taken of
    skipped: list[str]  # FILE:LINE: reason
    columns: dict[str, None]  # of the raw rows, in order
    tags: dict[str, str] = field(default_factory=dict)  # teachers' tags, and the first row of each
    filtered: int = 0
    done: float = 0.0  # share of the set, as the chunk says


def tokenise_chunk(
    chunk: Chunk, shape: RowShape, recipe: PromptRecipe, tokenizer: Tokenizer
) -> TokenisedChunk:
    """Decode, filter, convert and tokenise; rows that cannot be used are named."""
    convert = shape.converter()
    values: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
    part = TokenisedChunk(pyarrow.record_batch([[]] * len(SCHEMA), schema=SCHEMA), b"", [], {})
    part.done = chunk.done
    lines: list[bytes] = []
    for number, record in chunk.records():
        where = f"{chunk.name}:{number}"
        if isinstance(record, str):
            part.skipped.append(f"{where}: {record}")
            continue
        part.columns |= dict.fromkeys(record)
        try:
            if not shape.keeps(record) or (ours := convert(record)) is None:
                part.filtered += 1
                continue
            row = row_of(ours, where, recipe.need_response)
            prompt = _tokenise(row, recipe, tokenizer) | {"teacher": row.teacher or shape.teacher}
        except ValueError as error:
            part.skipped.append(f"{where}: {error}")
            continue
        for name, value in prompt.items():
            values[name].append(value)
        part.tags.setdefault(prompt["teacher"] or row.source, where)
        lines.append(_canonical(row, prompt))
    columns = [pyarrow.array(values[f.name], type=f.type) for f in SCHEMA]
    part.prompts = pyarrow.RecordBatch.from_arrays(columns, schema=SCHEMA)
    part.rows = b"".join(lines)
    return part


def _canonical(row: Row, prompt: dict[str, Any]) -> bytes:
    """The line of a prompt that the fingerprint is taken of."""
    line = [prompt["token_ids"], row.answer, prompt["response_ids"], row.source]
    line += [row.verifier] if row.verifier else []
    line += [prompt["privileged_ids"]] if prompt["privileged_ids"] else []
    line += [{"teacher": prompt["teacher"]}] if prompt["teacher"] else []
    return json.dumps(line).encode() + b"\n"


def _tokenise(row: Row, recipe: PromptRecipe, tokenizer: Tokenizer) -> dict[str, Any]:
    """A row's values of SCHEMA. Raises ValueError with the reason it cannot be used."""
    graded = not recipe.need_response
    if graded and verifier_for(row.source, row.verifier, recipe.verifier) == "code":
        read_tests(accepted(row.answer)[0])
    messages = list(row.messages)
    if recipe.system_prompt and not any(m["role"] == "system" for m in messages):
        messages.insert(0, {"role": "system", "content": recipe.system_prompt})
    if recipe.suffix:
        messages = _ending(messages, recipe.suffix)
    ids = tokenizer.apply_chat_template(messages)
    if not ids:
        raise ValueError("the prompt has no tokens")
    if recipe.cut:
        ids = ids[: recipe.max_prompt_tokens]
    _check_length(ids, recipe, "the prompt")
    privileged: list[int] = []
    if recipe.privileged:
        told = recipe.privileged.replace("{answer}", accepted(row.answer)[0])
        privileged = tokenizer.apply_chat_template(_ending(messages, told))
        _check_length(privileged, recipe, "with teacher.privileged the prompt")
    return {
        "token_ids": ids,
        "answers": accepted(row.answer),
        "text": "\n".join(m["content"] for m in row.messages),
        "source": row.source,
        "verifier": row.verifier,
        "response_ids": [*tokenizer.encode(row.response), tokenizer.eos_id] if row.response else [],
        "privileged_ids": privileged,
    }


def _ending(messages: list[Message], text: str) -> list[Message]:
    """The conversation whose last message ends in a text."""
    return [*messages[:-1], {**messages[-1], "content": messages[-1]["content"] + text}]


def _check_length(ids: list[int], recipe: PromptRecipe, what: str) -> None:
    if len(ids) > recipe.max_prompt_tokens:
        raise ValueError(
            f"{what} has {len(ids)} tokens, data.max_prompt_tokens is {recipe.max_prompt_tokens}"
        )
