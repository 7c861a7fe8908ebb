"""The samples of an evaluation on disk: written as they finish, found again after a kill.

    evaluation.json        what was asked for: an evaluation goes on only with the same
    problems/SET.jsonl     the problems as they were asked: index, prompt, answer, source,
                           verifier
    parts/*.jsonl          while it runs: one file per start of an engine, a line per sample
    samples/SET.jsonl      when all are there: the same lines, by problem and sample

A line of samples: set, problem, sample, tokens, finished, verdict, text. Lines are written whole
and flushed; the one that a kill cut short is left out, and its sample is drawn again.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scope_megatron.disk import write_atomically
from scope_megatron.types import Prompt, Verdict

IDENTITY = "evaluation.json"
_PROBLEMS, _PARTS, _SAMPLES = "problems", "parts", "samples"

Key = tuple[str, int, int]  # set, problem, sample


@dataclass(frozen=True)
class Outcome:
    """A sample without its text."""

    set: str
    problem: int
    sample: int
    tokens: int  # of the response, its end token included
    finished: bool  # not cut off at the length limit
    verdict: Verdict

    @property
    def key(self) -> Key:
        return self.set, self.problem, self.sample

    @property
    def correct(self) -> bool:
        """A response that was cut off, or that nobody could judge, counts as wrong."""
        return self.finished and self.verdict is Verdict.CORRECT


@dataclass(frozen=True)
class Sample(Outcome):
    """One response and its verdict."""

    text: str


class SampleWriter:
    """Appends samples to a file of its own; every line is on its way to the disk at once."""

    def __init__(self, directory: Path, rank: int) -> None:
        parts = directory / _PARTS
        parts.mkdir(parents=True, exist_ok=True)
        self.path = parts / f"{rank:05d}-{uuid.uuid4().hex[:8]}.jsonl"
        self._file = self.path.open("wb", buffering=0)

    def write(self, sample: Sample) -> None:
        line = json.dumps(asdict(sample), ensure_ascii=False)
        self._file.write(line.encode("utf-8", "replace") + b"\n")

    def close(self) -> None:
        self._file.close()


class SampleStore:
    """The directory of one evaluation. All but :class:`SampleWriter` is done by one rank."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def begin(self, identity: dict[str, Any], problems: dict[str, list[Prompt]]) -> None:
        """Start, or go on. Raises ValueError when another evaluation is there."""
        identity = json.loads(json.dumps(identity))
        path = self.directory / IDENTITY
        if path.exists():
            there = self.identity()
            if difference := differing_key(there | {"model": ""}, identity | {"model": ""}):
                fix = ", or grade its samples with regrade" * difference.startswith("verifier")
                raise ValueError(
                    f"--out: {self.directory} holds another evaluation ({difference}); give "
                    f"another --out{fix}"
                )
            return
        for name, prompts in problems.items():
            lines = (json.dumps(_problem(prompt), ensure_ascii=False) for prompt in prompts)
            write_lines(self.directory / _PROBLEMS / f"{name}.jsonl", lines)
        write_atomically(path, json.dumps(identity, indent=1) + "\n")

    def identity(self) -> dict[str, Any]:
        """What was asked for. Raises ValueError when this is no evaluation's directory."""
        path = self.directory / IDENTITY
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            raise ValueError(
                f"{self.directory} is no evaluation: it has no readable {IDENTITY}; give the "
                "directory that evaluate wrote"
            ) from None

    def problems(self, name: str) -> list[Prompt]:
        """The problems of a set, by index, as far as a verifier looks at them: no tokens."""
        with (self.directory / _PROBLEMS / f"{name}.jsonl").open(encoding="utf-8") as lines:
            return [_prompt(json.loads(line)) for line in lines]

    def outcomes(self) -> dict[Key, Outcome]:
        """Every sample that is there, without its text."""
        return {s.key: without_text(s) for _, s in self._lines()}

    def samples(self, name: str) -> Iterator[Sample]:
        """The samples of a finished set, by problem and sample."""
        with (self.directory / _SAMPLES / f"{name}.jsonl").open("rb") as lines:
            for line in lines:
                yield parse_sample(json.loads(line))

    def finish(self, names: Iterable[str]) -> None:
        """Sort all samples into one file per set, and remove the parts."""
        if not (self.directory / _PARTS).is_dir():
            return
        places = {sample.key: place for place, sample in self._lines()}
        for name in names:
            keys = sorted(key for key in places if key[0] == name)
            lines = (_line_at(*places[key]) for key in keys)
            write_lines(self.directory / _SAMPLES / f"{name}.jsonl", lines)
        shutil.rmtree(self.directory / _PARTS)

    def _lines(self) -> Iterator[tuple[tuple[Path, int], Sample]]:
        """((file, offset), sample) of every readable line; a sample's last line counts."""
        finished = sorted((self.directory / _SAMPLES).glob("*.jsonl"))
        for path in [*finished, *sorted((self.directory / _PARTS).glob("*.jsonl"))]:
            offset = 0
            with path.open("rb") as file:
                for line in file:
                    try:
                        yield (path, offset), parse_sample(json.loads(line))
                    except (ValueError, TypeError):
                        pass  # cut short by a kill
                    offset += len(line)


def parse_sample(values: dict[str, Any]) -> Sample:
    return Sample(**values | {"verdict": Verdict(values["verdict"])})


def without_text(sample: Sample) -> Outcome:
    values = {name: value for name, value in vars(sample).items() if name != "text"}
    return Outcome(**values)


def differing_key(before: Any, now: Any, name: str = "") -> str | None:
    """``sampling.seed is 1 there, 2 here``: the first value in which two JSON trees differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in before | now:
            inner = f"{name}.{key}" if name else str(key)
            if found := differing_key(before.get(key), now.get(key), inner):
                return found
        return None
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        pairs = zip(before, now, strict=True)
        found_all = (differing_key(a, b, f"{name}[{i}]") for i, (a, b) in enumerate(pairs))
        return next(filter(None, found_all), None)
    return None if before == now else f"{name} is {before} there, {now} here"


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """A file of lines, one in memory at a time, that is whole or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (f"{line}\n".encode(errors="replace") for line in lines))


def _problem(prompt: Prompt) -> dict[str, Any]:
    return {
        "index": prompt.index,
        "prompt": prompt.text,
        "answer": prompt.answer,
        "source": prompt.source,
        "verifier": prompt.verifier,
    }


def _prompt(row: dict[str, Any]) -> Prompt:
    answer = row["answer"]
    return Prompt(
        index=row["index"],
        token_ids=(),
        answer=tuple(answer) if isinstance(answer, list) else answer,
        text=row["prompt"],
        source=row["source"],
        verifier=row["verifier"],
    )


def _line_at(path: Path, offset: int) -> str:
    with path.open("rb") as file:
        file.seek(offset)
        return file.readline().decode("utf-8").rstrip("\n")
