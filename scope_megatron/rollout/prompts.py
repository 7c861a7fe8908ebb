"""Datasets: rows of .jsonl and .parquet files as tokenised prompts, in a resumable order.

A row has
    prompt        text, or chat messages [{"role", "content"}, ...]
    answer        reference answer, or a list of answers of which each is accepted; or
                  ``reward_model.ground_truth``, as DeepMath's parquet has it
    response      a response to imitate (supervised training only; ``answer`` may then be missing)
    data_source   where the row comes from; picks the verifier (optional)
    verifier      name of the verifier; comes before data_source (optional)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from scope_megatron.rollout.tokenizer import Message, Tokenizer
from scope_megatron.types import Answer, Prompt


@dataclass(frozen=True)
class Row:
    """A row as it stands in its file, before tokenisation."""

    where: str  # FILE:LINE (line or row number, from 1)
    messages: tuple[Message, ...]
    answer: Answer
    response: str = ""
    source: str = ""
    verifier: str = ""


@dataclass
class Rows:
    """The usable rows of one file, and what was left out: ``FILE:LINE: reason``."""

    usable: list[Row] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


class PromptDataset:
    """The usable rows of one or more files, tokenised.

    Rows that cannot be used are left out and named in ``skipped``. Raises ValueError, naming
    ``setting``, for a file that is missing, of an unknown kind, without a required column or
    without a single usable row. ``Prompt.index`` is the position in this dataset.
    """

    def __init__(
        self,
        paths: str | Path | Sequence[str | Path],
        tokenizer: Tokenizer,
        max_prompt_tokens: int,
        system_prompt: str | None = None,
        need_response: bool = False,
        setting: str = "data.train",
    ) -> None:
        """``system_prompt`` opens every conversation that has no system message of its own."""
        self.skipped: list[str] = []
        self._prompts: list[Prompt] = []
        files = [paths] if isinstance(paths, str | Path) else list(paths)
        if not files:
            raise ValueError(f"{setting}: no file is named")
        for path in files:
            rows = read_rows(path, need_response, setting)
            before = len(self._prompts)
            for row in rows.usable:
                try:
                    prompt = _tokenise(row, len(self), tokenizer, max_prompt_tokens, system_prompt)
                except ValueError as error:
                    rows.skipped.append(f"{row.where}: {error}")
                else:
                    self._prompts.append(prompt)
            _require_rows(len(self._prompts) - before, path, rows.skipped, setting)
            self.skipped += rows.skipped

    def __len__(self) -> int:
        return len(self._prompts)

    def __getitem__(self, index: int) -> Prompt:
        return self._prompts[index]

    def fingerprint(self) -> str:
        """SHA-256 of the contents as trained on: tokens, answers, responses, sources, in order."""
        digest = hashlib.sha256()
        for p in self._prompts:
            row = [p.token_ids, p.answer, p.response_ids, p.source]
            row += [p.verifier] if p.verifier else []
            digest.update(json.dumps(row).encode() + b"\n")
        return digest.hexdigest()


class PromptOrder:
    """Which prompts each step takes: endless epochs over ``size`` prompts, a new permutation in
    each. A batch is a function of (seed, step) alone, so a resumed run needs no saved position."""

    def __init__(self, size: int, seed: int, shuffle: bool = True) -> None:
        if size < 1:
            raise ValueError("data.train: there is no prompt to draw from")
        self.size, self.seed, self.shuffle = size, seed, shuffle
        self._epochs: dict[int, np.ndarray] = {}  # the permutations last used

    def batch(self, step: int, batch_size: int) -> list[int]:
        """Indices of step ``step`` (from 0), [batch_size]. No index comes twice in an epoch; a
        batch at the end of one goes on into the next."""
        positions = range(step * batch_size, (step + 1) * batch_size)
        return [int(self._epoch(p // self.size)[p % self.size]) for p in positions]

    def _epoch(self, epoch: int) -> np.ndarray:
        if epoch not in self._epochs:
            if len(self._epochs) > 1:
                self._epochs.clear()
            generator = np.random.default_rng([self.seed, epoch])
            order = np.arange(self.size)
            self._epochs[epoch] = generator.permutation(order) if self.shuffle else order
        return self._epochs[epoch]


def read_rows(path: str | Path, need_response: bool = False, setting: str = "data.train") -> Rows:
    """Every row of one ``.jsonl`` or ``.parquet`` file. Raises ValueError naming ``setting``."""
    path = Path(path)
    if path.suffix not in READERS:
        known = " or ".join(READERS)
        raise ValueError(f"{setting}: {path} has an unknown suffix: it must be {known}")
    if not path.is_file():
        raise ValueError(f"{setting}: {path} does not exist")
    rows, columns = Rows(), dict[str, None]()
    for number, record in READERS[path.suffix](path, setting):
        where = f"{path}:{number}"
        if isinstance(record, str):
            rows.skipped.append(f"{where}: {record}")
            continue
        columns |= dict.fromkeys(record)
        try:
            rows.usable.append(_row(record, where, need_response))
        except ValueError as error:
            rows.skipped.append(f"{where}: {error}")
    if columns:
        _require_columns(columns, path, need_response, setting)
    _require_rows(len(rows.usable), path, rows.skipped, setting)
    return rows


def _read_jsonl(path: Path, setting: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """(line number, its object, or why there is none). Empty lines are no rows."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                yield number, f"not UTF-8 ({error.reason} at byte {error.start})"
            except json.JSONDecodeError as error:
                yield number, f"not JSON ({error.msg} at column {error.colno})"
            else:
                yield number, record if isinstance(record, dict) else "not a JSON object"


def _read_parquet(path: Path, setting: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row number from 1, its columns)."""
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for record in batch.to_pylist():
                    number += 1
                    yield number, record
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{setting}: {path} is not a readable parquet file: {error}") from error


READERS = {".jsonl": _read_jsonl, ".parquet": _read_parquet}


def _row(record: Mapping[str, Any], where: str, need_response: bool) -> Row:
    """Raises ValueError with the reason a row cannot be used."""
    answer = _answer(record)
    if not answer and not need_response:
        raise ValueError("no ground truth (answer, or reward_model.ground_truth)")
    response = record.get("response") if need_response else ""
    if not isinstance(response, str) or (need_response and not response.strip()):
        raise ValueError("no response")
    return Row(
        where=where,
        messages=_messages(record.get("prompt")),
        answer=answer,
        response=response,
        source=str(record.get("data_source") or ""),
        verifier=str(record.get("verifier") or ""),
    )


def _answer(record: Mapping[str, Any]) -> Answer:
    """The reference answer, "" if the row has none. A number is taken as its text, a list as the
    answers that are accepted."""
    answer = record.get("answer")
    if answer is None and isinstance(record.get("reward_model"), Mapping):
        answer = record["reward_model"].get("ground_truth")
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


def _tokenise(
    row: Row, index: int, tokenizer: Tokenizer, max_prompt_tokens: int, system_prompt: str | None
) -> Prompt:
    """Raises ValueError with the reason a row cannot be used."""
    messages = list(row.messages)
    if system_prompt and not any(m["role"] == "system" for m in messages):
        messages.insert(0, {"role": "system", "content": system_prompt})
    ids = tokenizer.apply_chat_template(messages)
    if not ids:
        raise ValueError("the prompt has no tokens")
    if len(ids) > max_prompt_tokens:
        raise ValueError(
            f"the prompt has {len(ids)} tokens, data.max_prompt_tokens is {max_prompt_tokens}"
        )
    response = [*tokenizer.encode(row.response), tokenizer.eos_id] if row.response else []
    return Prompt(
        index=index,
        token_ids=tuple(ids),
        answer=row.answer,
        text="\n".join(m["content"] for m in row.messages),
        source=row.source,
        verifier=row.verifier,
        response_ids=tuple(response),
    )


def _require_columns(columns: Iterable[str], path: Path, need_response: bool, setting: str) -> None:
    needed = {"prompt": {"prompt"}}
    if need_response:
        needed["response"] = {"response"}
    else:
        needed["answer (or reward_model)"] = {"answer", "reward_model"}
    for name, either in needed.items():
        if either.isdisjoint(columns):
            raise ValueError(
                f"{setting}: {path} has no column {name}; it has: {', '.join(columns)}"
            )


def _require_rows(usable: int, path: str | Path, skipped: list[str], setting: str) -> None:
    if not usable:
        reasons = "; ".join(skipped[:3]) or "the file is empty"
        raise ValueError(f"{setting}: {path} has no usable row ({reasons})")
