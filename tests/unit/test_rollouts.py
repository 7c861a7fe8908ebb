"""Responses on disk: columns, index, bounds, resumption, and a disk that does not take them."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from scope_megatron.data.tokenizer import load_tokenizer
from scope_megatron.logging.rollouts import (
    COLUMNS,
    ResponseRecord,
    RolloutWriter,
    begin,
    step_of_file,
    token_texts,
)
from scope_megatron.types import Prompt, Rollout, Verdict
from tests.support.viewed_runs import Letters

ROOT = Path(__file__).parents[2]
HOSTILE = "<script>alert(1)</script>\x1b[31m\x00\u202eabc"


def record(text: str = "ab", group: int = 0, sample: int = 0) -> ResponseRecord:
    ids = list(text.encode())
    prompt = Prompt(index=7, token_ids=(65, 66), answer=("1", "2"), source="mine")
    rollout = Rollout(prompt, sample, ids, [-0.5] * len(ids), True, text, Verdict.INCORRECT)
    return ResponseRecord(
        group=group,
        rollout=rollout,
        path="incorrect",
        weight=0.25,
        factor=0.5,
        student=torch.full((len(ids),), -0.5),
        teacher=torch.full((len(ids),), -1.5),
        entropy=torch.full((len(ids),), torch.nan),
        student_best=torch.tensor([[[97.0, 98.0, 240.0], [-0.5, -1.5, -9.0]]] * len(ids)),
    )


def write(output: Path, *steps: int, size: float = 2**30, text: str = "ab") -> None:
    writer = RolloutWriter(output, Letters(), (0, 1), size)
    for step in steps:
        writer.put("train", step, [record(text), record(text, sample=1)])
        writer.close()


def index(output: Path) -> list[dict[str, object]]:
    lines = (output / "rollouts/index/00000.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_every_column_is_written_and_documented(tmp_path: Path) -> None:
    write(tmp_path, 3, text=HOSTILE)
    table = pq.read_table(tmp_path / "rollouts/step_00000003.parquet")
    assert table.column_names == list(COLUMNS)
    row = table.to_pylist()[0]
    assert row["response"] == HOSTILE and "".join(row["tokens"]) == HOSTILE
    assert row["prompt"] == "AB" and row["answer"] == ["1", "2"] and row["prompt_index"] == 7
    assert row["student_perplexity"] == pytest.approx(2.718281828**0.5)
    assert row["teacher_logprobs"] == [-1.5] * len(HOSTILE.encode())
    assert row["entropy"] is None and row["divergence"] is None, "unknown is null"
    assert row["student_top_ids"] == [[97, 98, 240]] * len(row["tokens"])
    assert row["student_top_tokens"][0] == ["a", "b", "\ufffd"], "a part of a character"
    assert row["student_top_logprobs"][0] == [-0.5, -1.5, -9.0]
    assert (
        row["teacher_top_ids"] is row["teacher_top_tokens"] is row["teacher_top_logprobs"] is None
    )
    page = (ROOT / "docs/rollouts.md").read_text()
    assert [name for name in COLUMNS if f"| `{name}` |" not in page] == []


def test_datasets_reads_them(tmp_path: Path) -> None:
    from datasets import load_dataset

    write(tmp_path, 5, 10)
    files = str(tmp_path / "rollouts/step_*.parquet")
    rows = load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "c"))
    assert len(rows) == 4 and sorted(set(rows["step"])) == [5, 10]
    assert rows.column_names == list(COLUMNS)


def test_texts_of_tokens_joined_are_the_text() -> None:
    texts = token_texts(Letters())
    said = texts(list("aé😀b".encode()))
    assert said == ["a", "", "é", "", "", "", "😀", "b"]
    assert "".join(texts([0xFF, 97])) != "", "bytes that are no text are shown as such"
    tokenizer = load_tokenizer(ROOT / "assets/tiny-student")
    ids = tokenizer.encode("99 -1 +1 -2")
    assert "".join(token_texts(tokenizer)(ids)) == tokenizer.decode(ids, skip_special=False)


def test_every_file_is_in_the_index(tmp_path: Path) -> None:
    write(tmp_path, 5)
    first, second = index(tmp_path)
    assert (first["file"], first["row"], second["row"]) == ("step_00000005.parquet", 0, 1)
    assert first["gap"] == pytest.approx(1.0) and first["tokens"] == 2


def test_the_oldest_files_go_when_there_are_too_many(tmp_path: Path) -> None:
    write(tmp_path, 1)
    size = (tmp_path / "rollouts/step_00000001.parquet").stat().st_size
    write(tmp_path, 2, 3, 4, 5, size=2.5 * size)
    left = sorted(
        step_of_file(path.name) or 0 for path in (tmp_path / "rollouts").glob("*.parquet")
    )
    assert left == [4, 5]


def test_a_resumed_run_drops_what_it_will_do_again(tmp_path: Path) -> None:
    write(tmp_path, 5, 10, 15)
    begin(tmp_path, 10)
    assert not (tmp_path / "rollouts/step_00000015.parquet").exists()
    assert {row["step"] for row in index(tmp_path)} == {5, 10}


def test_a_new_run_sets_the_old_responses_aside(tmp_path: Path) -> None:
    write(tmp_path, 5)
    begin(tmp_path, 0)
    assert not (tmp_path / "rollouts").exists()
    assert (tmp_path / "rollouts.1/step_00000005.parquet").exists()


def test_replicas_have_files_of_their_own(tmp_path: Path) -> None:
    for number in range(2):
        writer = RolloutWriter(tmp_path, Letters(), (number, 2), 2**30)
        writer.put("train", 4, [record(sample=number)])
        writer.close()
    names = sorted(path.name for path in (tmp_path / "rollouts").glob("*.parquet"))
    assert names == [f"step_00000004-0000{n}-of-00002.parquet" for n in (0, 1)]
    assert [step_of_file(name) for name in names] == [4, 4]


def test_a_disk_that_takes_nothing_stops_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rollouts").write_text("a file where a directory should be")
    write(tmp_path, 5, 10)
    told = capfd.readouterr().err
    assert told.count("\n") == 1 and "the run goes on" in told
