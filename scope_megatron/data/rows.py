"""What a row holds, and when it cannot be used.

A row has
    prompt        text, or chat messages [{"role", "content"}, ...]
    answer        reference answer, or a list of answers of which each is accepted; or
                  ``reward_model.ground_truth``, as DeepMath's parquet has it
    response      a response to imitate (supervised training only; ``answer`` may then be missing)
    data_source   where the row comes from; picks the verifier (optional)
    verifier      name of the verifier; comes before data_source (optional)
    teacher       tag in model.teachers; comes before data_source (optional)
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from scope_megatron.data.tokenizer import Message
from scope_megatron.types import Answer


@dataclass(frozen=True)
class Row:
    """A row as it stands in its file, before tokenisation."""

    where: str  # FILE:LINE (line or row number, from 1)
    messages: tuple[Message, ...]
    answer: Answer
    response: str = ""
    source: str = ""
    verifier: str = ""
    teacher: str = ""


def row_of(record: Mapping[str, Any], where: str, need_response: bool) -> Row:
    """Raises ValueError with the reason a row cannot be used."""
    answer = _answer(record)
    if not answer and not need_response:
        raise ValueError("no ground truth (answer, or reward_model.ground_truth)")
    response = record.get("response") if need_response else ""
    if not isinstance(response, str) or (need_response and not response.strip()):
        raise ValueError("no response")
    row = Row(
        where=where,
        messages=_messages(record.get("prompt")),
        answer=answer,
        response=response,
        source=str(record.get("data_source") or ""),
        verifier=str(record.get("verifier") or ""),
        teacher=str(record.get("teacher") or ""),
    )
    _require_characters(row)
    return row


def _require_characters(row: Row) -> None:
    """JSON can hold one half of a UTF-16 pair, which no file and no tokenizer takes."""
    texts = {
        "prompt": "".join(m["role"] + m["content"] for m in row.messages),
        "answer": "".join(row.answer),
        "response": row.response,
        "data_source": row.source,
        "verifier": row.verifier,
        "teacher": row.teacher,
    }
    for name, text in texts.items():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = f"\\u{ord(text[error.start]):x}"
            raise ValueError(
                f"the {name} holds half a character ({half}); correct or remove it"
            ) from None


def _answer(record: Mapping[str, Any]) -> Answer:
    """The reference answer, "" if the row has none. A number is taken as its text, a list as the
    answers that are accepted, tests of code (an object, or a list of them) as their JSON text."""
    answer = record.get("answer")
    if answer is None and isinstance(record.get("reward_model"), Mapping):
        answer = record["reward_model"].get("ground_truth")
    if isinstance(answer, Mapping) or (
        isinstance(answer, list) and answer and isinstance(answer[0], Mapping)
    ):
        return json.dumps(answer, ensure_ascii=False)
    if isinstance(answer, list | tuple):
        answers = tuple(text for one in answer if (text := _answer_text(one)))
        return answers if len(answers) > 1 else "".join(answers)
    return _answer_text(answer)


def _answer_text(answer: object) -> str:
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        return ""
    return str(answer).strip()


def _messages(prompt: object) -> tuple[Message, ...]:
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if prompt is None or prompt == []:
        raise ValueError("no prompt")
    if not isinstance(prompt, list):
        raise ValueError("the prompt is neither text nor a list of chat messages")
    messages: list[Message] = []
    for m in prompt:
        role, content = (m.get("role"), m.get("content")) if isinstance(m, Mapping) else (0, 0)
        if not (isinstance(role, str) and isinstance(content, str)):
            raise ValueError("a chat message needs a role and a content, both text")
        messages.append({"role": role, "content": content})
    if not any(m["content"].strip() for m in messages if m["role"] != "system"):
        raise ValueError("the prompt is empty")
    return tuple(messages)


def require_columns(
    columns: Iterable[str], set_name: str, need_response: bool, setting: str
) -> None:
    """Raise ValueError unless a set has the columns of a row."""
    needed = {"prompt": {"prompt"}}
    if need_response:
        needed["response"] = {"response"}
    else:
        needed["answer (or reward_model)"] = {"answer", "reward_model"}
    for name, either in needed.items():
        if either.isdisjoint(columns):
            raise ValueError(
                f"{setting}: {set_name} has no column {name}; it has: {', '.join(columns)}"
            )


def require_rows(
    usable: int, set_name: str, skipped: list[str], filtered: int, setting: str
) -> None:
    """Raise ValueError, with the first reasons, when no row of a set can be used."""
    if not usable:
        why = f"the filter leaves out {filtered}" if filtered else "the file is empty"
        reasons = "; ".join(skipped[:3]) or why
        raise ValueError(f"{setting}: {set_name} has no usable row ({reasons})")
