"""The store: what was written is found again, whatever a kill left behind."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scope_megatron.instruments.evaluation.samples import (
    Sample,
    SampleStore,
    SampleWriter,
    differing_key,
    without_text,
    write_lines,
)
from scope_megatron.types import Prompt, Verdict

TEXTS = ["", "plain", 'quo"te\nline', "ünïcødé ∑ 数", "\u2028 separator", "half \ud800 pair"]


def sample(name: str, problem: int, k: int, **changes: Any) -> Sample:
    values: dict[str, Any] = {
        "tokens": 3 + k,
        "finished": True,
        "verdict": Verdict.CORRECT if k % 2 else Verdict.INCORRECT,
        "text": TEXTS[(problem + k) % len(TEXTS)],
    }
    return Sample(set=name, problem=problem, sample=k, **values | changes)


def everything() -> list[Sample]:
    return [sample(name, i, k) for name in ("a", "b") for i in range(3) for k in range(4)]


def write(directory: Path, samples: list[Sample], rank: int = 0) -> Path:
    with closing(SampleWriter(directory, rank)) as writer:
        for one in samples:
            writer.write(one)
    return writer.path


def test_parts_of_several_ranks_become_sorted_files(tmp_path: Path) -> None:
    samples = everything()
    random.Random(0).shuffle(samples)
    write(tmp_path, samples[:10], rank=0)
    write(tmp_path, samples[10:], rank=1)
    store = SampleStore(tmp_path)
    assert store.outcomes() == {s.key: without_text(s) for s in samples}
    store.finish(["a", "b"])
    assert not (tmp_path / "parts").exists()
    found = [*store.samples("a"), *store.samples("b")]
    assert [s.key for s in found] == [s.key for s in everything()]
    for one, expected in zip(found, everything(), strict=True):
        assert one.text == expected.text.replace("\ud800", "?")
    assert store.outcomes() == {s.key: without_text(s) for s in samples}
    store.finish(["a", "b"])  # nothing is left to do
    assert [*store.samples("a"), *store.samples("b")] == found


@pytest.mark.parametrize("kept", range(1, 60, 7))
def test_a_line_that_a_kill_cut_short_is_not_a_sample(tmp_path: Path, kept: int) -> None:
    path = write(tmp_path, [sample("a", 0, 0), sample("a", 0, 1)])
    first = path.read_bytes().index(b"\n") + 1
    path.write_bytes(path.read_bytes()[: first + kept])
    assert list(SampleStore(tmp_path).outcomes()) == [("a", 0, 0)]


def test_an_interrupted_sort_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, everything())
    store = SampleStore(tmp_path)

    def killed_at_b(path: Path, lines: Iterable[str]) -> None:
        if path.name == "b.jsonl":
            raise KeyboardInterrupt
        write_lines(path, lines)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("scope_megatron.instruments.evaluation.samples.write_lines", killed_at_b)
        store.finish(["a", "b"])
    assert (tmp_path / "samples" / "a.jsonl").exists()
    assert len(store.outcomes()) == len(everything())
    store.finish(["a", "b"])
    assert [s.key for n in ("a", "b") for s in store.samples(n)] == [s.key for s in everything()]


def test_goes_on_only_with_the_same_evaluation(tmp_path: Path) -> None:
    store = SampleStore(tmp_path)
    prompts = [
        Prompt(0, (1, 2), "4", text="2+2", source="arithmetic"),
        Prompt(1, (1, 3), ("4", "four"), text="3+1", verifier="string"),
    ]
    problems = {"a": prompts}
    identity = {"model": "m", "sampling": {"seed": 1}, "verifier": "auto", "sets": [{"name": "a"}]}
    store.begin(identity, problems)
    assert store.problems("a") == [replace(prompt, token_ids=()) for prompt in prompts]
    store.begin(identity | {"model": "./m/"}, problems)  # the name alone says nothing
    with pytest.raises(ValueError, match=r"sampling\.seed is 1 there, 2 here"):
        store.begin(identity | {"sampling": {"seed": 2}}, problems)
    with pytest.raises(ValueError, match="regrade"):
        store.begin(identity | {"verifier": "string"}, problems)
    assert json.loads((tmp_path / "evaluation.json").read_text()) == identity


def test_no_evaluation(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is no evaluation: it has no readable evaluation\.json"):
        SampleStore(tmp_path).identity()


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        ({"a": 1}, {"a": 1}, None),
        ({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}, "a[1].b is 2 there, 3 here"),
        ({"a": [1]}, {"a": [1, 2]}, "a is [1] there, [1, 2] here"),
        ({}, {"a": 0}, "a is None there, 0 here"),
    ],
)
def test_first_difference(before: Any, now: Any, expected: str | None) -> None:
    assert differing_key(before, now) == expected


def test_what_counts_as_correct() -> None:
    assert without_text(sample("a", 0, 1)).correct
    assert not sample("a", 0, 1, finished=False).correct
    assert not sample("a", 0, 1, verdict=Verdict.TIMEOUT).correct
