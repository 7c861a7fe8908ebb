"""Responses of a run on disk: one Parquet file per step, written in the background.

    rollouts/step_00000010.parquet                  responses of step 10 (one data-parallel replica)
    rollouts/step_00000010-00000-of-00004.parquet   those that replica 0 of 4 trained on
    rollouts/eval_00000010.parquet                  samples of the evaluation after step 10
    rollouts/index/00000.jsonl                      a line per response without its tokens, for
                                                    whoever looks for one

A line of the index is written before its file appears, so every file is in the index; a line whose
file is gone says nothing. :data:`COLUMNS` are the files' columns. The trainer hands over what it
has in memory and goes on: a thread makes the table, compresses it and syncs it to the disk. A disk
that is full or slow stops nothing: that step's responses are missing, and one line says so.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import queue
import re
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from scope_megatron import outputs
from scope_megatron.disk import write_atomically
from scope_megatron.types import Rollout, accepted

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

# column: (type, meaning); a value that the run did not compute is null
COLUMNS = {
    "kind": ("string", "train, or eval for a sample of an evaluation"),
    "step": ("int64", "training step, from 1; of an evaluation: steps done before it"),
    "set": ("string", "name of the evaluation set; empty for training data"),
    "group": ("int64", "number of the prompt in its step, or of the problem in its set, from 0"),
    "sample": ("int64", "number of the response in its group, from 0"),
    "prompt_index": ("int64", "row of the data set"),
    "source": ("string", "the row's data_source"),
    "prompt": ("string", "text of the prompt as the model saw it, special tokens included"),
    "answer": ("list<string>", "reference answers, of which each alone is correct"),
    "response": ("string", "text of the response, without special tokens"),
    "prompt_tokens": ("int64", "tokens of the prompt"),
    "response_tokens": ("int64", "tokens of the response, its end token included"),
    "finished": ("bool", "whether it ended by itself; false: cut off at the length limit"),
    "verdict": ("string", "correct, incorrect, timeout, crash or refused"),
    "path": ("string", "correct, incorrect or masked: the path of the loss it was routed to"),
    "weight": ("float", "w of equation 4 or 5 among its group's path; scope alone"),
    "factor": ("float", "factor of its tokens in the loss, normalised over the global batch"),
    "student_perplexity": ("float", "of the response under the weights that sampled it"),
    "teacher_perplexity": ("float", "of the response under the teacher"),
    "token_ids": ("list<int32>", "tokens of the response"),
    "tokens": ("list<string>", "text of each; a character of several tokens stands at its last"),
    "student_logprobs": ("list<float>", "log-probability of each token under the student"),
    "teacher_logprobs": ("list<float>", "under the teacher"),
    "engine_logprobs": ("list<float>", "as the engine reported it when it sampled"),
    "entropy": ("list<float>", "entropy of the student at each token, nats"),
    "divergence": ("list<float>", "exact divergence from the teacher at each token, nats"),
    "student_top_ids": ("list<list<int32>>", "at each token the student's likeliest ones"),
    "student_top_tokens": ("list<list<string>>", "their texts"),
    "student_top_logprobs": ("list<list<float>>", "their log-probabilities, falling"),
    "teacher_top_ids": ("list<list<int32>>", "at each token the teacher's likeliest ones"),
    "teacher_top_tokens": ("list<list<string>>", "their texts"),
    "teacher_top_logprobs": ("list<list<float>>", "their log-probabilities, falling"),
}
_STEP = re.compile(r"(?:step|eval)_(\d+)(?:-\d+-of-\d+)?\.parquet")
_WAITING = 2  # steps in memory beyond which one is left out
_EXCERPT = 160  # characters of prompt and response in the index


class TokenText(Protocol):
    """The two methods of a tokenizer that are used."""

    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str: ...


@dataclass(frozen=True)
class ResponseRecord:
    """A response with what the step knew of it. Tensors are float32 [response length], on the CPU;
    they are read later and must not change. The likeliest tokens of a model are
    [response length, 2, k]: their numbers, and their log-probabilities."""

    group: int
    rollout: Rollout
    path: str | None = None
    weight: float | None = None
    factor: float | None = None
    student: Tensor | None = None
    teacher: Tensor | None = None
    entropy: Tensor | None = None
    divergence: Tensor | None = None
    student_best: Tensor | None = None
    teacher_best: Tensor | None = None
    set: str = ""


def step_of_file(name: str) -> int | None:
    """The step of a file in rollouts/, None of another file."""
    found = _STEP.fullmatch(name)
    return int(found[1]) if found else None


def arrow_schema() -> pa.Schema:
    """The columns as pyarrow's types."""
    import pyarrow as pa

    kinds = {
        "string": pa.string(),
        "int64": pa.int64(),
        "bool": pa.bool_(),
        "float": pa.float32(),
        "list<string>": pa.list_(pa.string()),
        "list<int32>": pa.list_(pa.int32()),
        "list<float>": pa.list_(pa.float32()),
    }
    kinds |= {f"list<{name}>": pa.list_(kind) for name, kind in kinds.items()}
    return pa.schema([(name, kinds[kind]) for name, (kind, _) in COLUMNS.items()])


def begin(output_dir: Path, done: int) -> None:
    """Before a run's first file: by one rank. After ``done`` steps, what later ones had written is
    removed; a run that starts anew sets the responses of an earlier attempt aside."""
    directory = outputs.rollouts_dir(output_dir)
    if not directory.is_dir():
        return
    if done == 0:
        numbered = (directory.with_name(f"{directory.name}.{n}") for n in itertools.count(1))
        directory.rename(next(path for path in numbered if not path.exists()))
        return
    for path in directory.iterdir():
        later = (step_of_file(path.name) or 0) > done
        if later or path.name.endswith(".tmp"):
            path.unlink(missing_ok=True)
    for path in (directory / outputs.ROLLOUTS_INDEX).glob("*.jsonl"):
        rows = [(line, _row(line)) for line in path.read_bytes().splitlines()]
        kept = [line for line, row in rows if row is not None and row["step"] <= done]
        write_atomically(path, b"".join(line + b"\n" for line in kept))


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:  # cut short by a kill
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


class RolloutWriter:
    """The thread that writes the responses of one data-parallel replica.

    ``place``: (number, count) of the replica. ``max_bytes``: of the files of all replicas.
    """

    def __init__(
        self, output_dir: Path, tokenizer: TokenText, place: tuple[int, int], max_bytes: float
    ) -> None:
        self.directory = outputs.rollouts_dir(output_dir)
        self._tokenizer, self._place = tokenizer, place
        self._limit = max_bytes / place[1]
        self._queue: queue.Queue[tuple[str, int, list[ResponseRecord]] | None]
        self._queue = queue.Queue(_WAITING)
        self._thread: threading.Thread | None = None
        self._pieces: Callable[[Sequence[int]], list[str]] | None = None
        self._told = False

    def put(self, kind: str, step: int, records: list[ResponseRecord]) -> None:
        """Have the responses of a step written ("train"), or of an evaluation ("eval")."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="rollouts", daemon=True)
            self._thread.start()
        try:
            self._queue.put_nowait((kind, step, records))
        except queue.Full:
            self._tell(f"those of step {step} would have to wait for the disk")

    def close(self, timeout: float = 60.0) -> None:
        """Until everything is written. May be called twice."""
        if self._thread is not None:
            with contextlib.suppress(queue.Full):
                self._queue.put(None, timeout=timeout)
            self._thread.join(timeout)
            self._thread = None

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            try:
                self.write(*item)
            except Exception as error:  # a disk, or text that no column takes: the run goes on
                self._tell(f"{type(error).__name__}: {error}")

    def _tell(self, why: str) -> None:
        if not self._told:
            print(f"responses are not all written: {why}; the run goes on", file=sys.stderr)
        self._told = True

    def write(self, kind: str, step: int, records: list[ResponseRecord]) -> None:
        """Write the file of a step at once, in the thread that calls."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        if self._pieces is None:
            self._pieces = token_texts(self._tokenizer)
        rows = [self._values(kind, step, record) for record in records]
        number, count = self._place
        part = f"-{number:05d}-of-{count:05d}" if count > 1 else ""
        path = self.directory / f"{'step' if kind == 'train' else kind}_{step:08d}{part}.parquet"
        index = self.directory / outputs.ROLLOUTS_INDEX / f"{number:05d}.jsonl"
        index.parent.mkdir(parents=True, exist_ok=True)
        sink = pa.BufferOutputStream()
        pq.write_table(
            pa.Table.from_pylist(rows, arrow_schema()), sink, compression="zstd", row_group_size=64
        )
        with index.open("ab") as file:
            file.write(b"".join(_index_line(path.name, n, row) for n, row in enumerate(rows)))
        write_atomically(path, sink.getvalue().to_pybytes())
        self._bound(path)

    def _bound(self, newest: Path) -> None:
        """Remove this replica's oldest files until they fit, but never the newest."""
        mine = newest.name.partition(".")[0].partition("-")[2]
        files = [
            (step_of_file(path.name) or 0, path.name, path, path.stat().st_size)
            for path in self.directory.glob("*.parquet")
            if path.name.partition(".")[0].partition("-")[2] == mine
        ]
        total = sum(size for *_, size in files)
        for *_, path, size in sorted(files):
            if total <= self._limit or path == newest:
                break
            path.unlink()
            total -= size

    def _values(self, kind: str, step: int, record: ResponseRecord) -> dict[str, Any]:
        rollout, prompt = record.rollout, record.rollout.prompt
        assert self._pieces is not None
        values = {
            "kind": kind,
            "step": step,
            "set": record.set,
            "group": record.group,
            "sample": rollout.sample,
            "prompt_index": prompt.index,
            "source": _text(prompt.source),
            "prompt": _text(self._tokenizer.decode(prompt.token_ids, skip_special=False)),
            "answer": [_text(answer) for answer in accepted(prompt.answer)],
            "response": _text(rollout.text or self._tokenizer.decode(rollout.token_ids)),
            "prompt_tokens": len(prompt.token_ids),
            "response_tokens": len(rollout.token_ids),
            "finished": rollout.finished,
            "verdict": None if rollout.verdict is None else str(rollout.verdict),
            "path": record.path,
            "weight": record.weight,
            "factor": record.factor,
            "student_perplexity": _perplexity(record.student),
            "teacher_perplexity": _perplexity(record.teacher),
            "token_ids": rollout.token_ids,
            "tokens": self._pieces(rollout.token_ids),
            "student_logprobs": _numbers(record.student),
            "teacher_logprobs": _numbers(record.teacher),
            "engine_logprobs": rollout.engine_logprobs or None,
            "entropy": _numbers(record.entropy),
            "divergence": _numbers(record.divergence),
            **self._best("student", record.student_best),
            **self._best("teacher", record.teacher_best),
        }
        return values

    def _best(self, whose: str, best: Tensor | None) -> dict[str, Any]:
        """The columns of a model's likeliest tokens [length, 2, k]; each is decoded by itself."""
        assert self._pieces is not None
        ids = logprobs = texts = None
        if best is not None:
            ids, logprobs = best[:, 0].int().tolist(), best[:, 1].tolist()
            text = {token: self._pieces([token])[0] for token in {t for row in ids for t in row}}
            texts = [[text[token] for token in row] for row in ids]
        return {
            f"{whose}_top_ids": ids,
            f"{whose}_top_tokens": texts,
            f"{whose}_top_logprobs": logprobs,
        }


def token_texts(tokenizer: TokenText) -> Callable[[Sequence[int]], list[str]]:
    """A function from tokens to their texts, which joined are the whole text.

    Each is decoded behind a letter, so that a word's leading space stays; bytes of one character
    are gathered at the last of its tokens.
    """
    anchor = tokenizer.encode("a")[-1:]
    skipped = len(tokenizer.decode(anchor, skip_special=False))
    known: dict[int, str] = {}

    def decode(ids: list[int]) -> str:
        return _text(tokenizer.decode([*anchor, *ids], skip_special=False)[skipped:])

    def texts(ids: Sequence[int]) -> list[str]:
        out: list[str] = []
        held: list[int] = []
        for token in ids:
            if not held:
                if token not in known:
                    known[token] = decode([token])
                if "\ufffd" not in known[token]:
                    out.append(known[token])
                    continue
            held.append(token)
            whole = decode(held)
            if "\ufffd" not in whole or len(held) == 4:  # no character has more bytes
                out += [""] * (len(held) - 1) + [whole]
                held = []
        return out + ([""] * (len(held) - 1) + [decode(held)] if held else [])

    return texts


def _index_line(file: str, row: int, values: dict[str, Any]) -> bytes:
    """What is looked for, by short values: no tokens, the beginning of the texts."""
    names = ("kind", "step", "set", "group", "sample", "verdict", "path", "finished", "weight")
    kept = {name: values[name] for name in names} | {
        "file": file,
        "row": row,
        "tokens": values["response_tokens"],
        "student": values["student_perplexity"],
        "teacher": values["teacher_perplexity"],
        "gap": _gap(values["student_logprobs"], values["teacher_logprobs"]),
        "prompt": values["prompt"][-_EXCERPT:],
    }
    return json.dumps(kept, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _gap(student: list[float] | None, teacher: list[float] | None) -> float | None:
    """Mean absolute difference of the two log-probabilities per token."""
    if not student or not teacher:
        return None
    gap = sum(abs(a - b) for a, b in zip(student, teacher, strict=True)) / len(student)
    return gap if math.isfinite(gap) else None


def _perplexity(logprobs: Tensor | None) -> float | None:
    if logprobs is None or not len(logprobs):
        return None
    value = math.exp(min(-float(logprobs.mean()), 80.0))
    return value if math.isfinite(value) else None


def _numbers(values: Tensor | None) -> list[float] | None:
    """None too where nothing of it is known."""
    if values is None or bool(values.isnan().all()):
        return None
    numbers: list[float] = values.tolist()
    return numbers


def _text(text: str) -> str:
    """A lone surrogate has no bytes."""
    return text.encode("utf-8", "replace").decode("utf-8")
