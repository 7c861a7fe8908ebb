"""Which teacher a row has: by its column, set or data_source; and what a run keeps of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from scope_megatron import cli
from scope_megatron.config import load_config
from scope_megatron.config.sections.data import DataSource
from scope_megatron.data.dataset import PromptDataset, open_dataset
from scope_megatron.data.tokenizer import load_tokenizer
from scope_megatron.train import identity
from tests.unit.test_prompts import Characters, write_jsonl

ROOT = Path(__file__).parents[2]
ASSETS = ROOT / "assets"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCOPE_MEGATRON_CACHE", str(tmp_path / "cache"))


def rows(path: Path, *more: dict[str, object]) -> Path:
    return write_jsonl(path, *({"prompt": "1+1", "answer": "2"} | row for row in more))


def test_column_then_set_then_source(tmp_path: Path) -> None:
    path = rows(
        tmp_path / "a.jsonl",
        {"teacher": "own", "data_source": "s"},
        {"data_source": "s"},
        {"lesson": "l"},
    )
    plain = PromptDataset(path, Characters(), 50)
    assert [prompt.tag for prompt in plain] == ["own", "s", ""]
    given = PromptDataset(DataSource(name=str(path), teacher="set"), Characters(), 50)
    assert [prompt.tag for prompt in given] == ["own", "set", "set"]
    assert given.fingerprint() != plain.fingerprint()
    assert given.description["teacher of set 1"] == "set"
    mapped = PromptDataset(path, Characters(), 50, columns={"teacher": "data_source"})
    assert [prompt.tag for prompt in mapped] == ["s", "s", ""]


def test_a_row_without_a_teacher_is_named(tmp_path: Path) -> None:
    path = rows(
        tmp_path / "a.jsonl",
        {"data_source": "math"},
        {"data_source": "law"},
        {"data_source": "law"},
        {},
    )
    data = PromptDataset(path, Characters(), 50)
    data.require_teachers(["math", "law", ""], "data.train")
    with pytest.raises(ValueError, match="^data.train: has rows that no teacher is for") as error:
        data.require_teachers(["math", "code"], "data.train")
    assert f"law ({path}:2), no tag ({path}:4); model.teachers has math, code." in str(error.value)


def settings(tmp_path: Path, **teachers: str) -> list[str]:
    train = rows(tmp_path / "train.jsonl", {"data_source": "a"}, {"data_source": "b"})
    return [
        "model.teacher=null",
        f"model.teachers={json.dumps(teachers)}",
        f"data.train={train}",
        f"output_dir={tmp_path / 'out'}",
    ]


def test_the_command_for_data_shows_and_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    teacher = str(ASSETS / "tiny-teacher")
    right = ["data", "configs/quickstart.yaml", *settings(tmp_path, a=teacher, b=teacher)]
    shown = CliRunner().invoke(cli.app, right)
    assert shown.exit_code == 0, shown.output
    assert "teacher a: 1 prompt\n" in shown.stdout and "teacher b: 1 prompt\n" in shown.stdout
    wrong = CliRunner().invoke(cli.app, [*right[:2], *settings(tmp_path, a=teacher)])
    assert wrong.exit_code == 2 and "no teacher is for: b (" in wrong.stderr


def test_a_resumed_run_has_the_same_teachers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    for name in ("one", "two"):
        shutil.copytree(ASSETS / "tiny-teacher", tmp_path / name)
    weights = tmp_path / "two" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")

    def of(**teachers: str) -> dict[str, object]:
        overrides = settings(tmp_path, **{t: str(tmp_path / n) for t, n in teachers.items()})
        config = load_config("configs/quickstart.yaml", overrides)
        tokenizer = load_tokenizer(config.model.student)
        data = open_dataset(config, "data.train", config.data.train, tokenizer)
        return identity.of_run(config, data, tokenizer)

    before = of(a="one", b="two")
    assert before["model.teachers.a"] != before["model.teachers.b"]
    (tmp_path / "one").rename(tmp_path / "moved")
    identity.require_same(before, of(a="moved", b="two"), Path("step_1"))
    with pytest.raises(ValueError, match=r"^model\.teachers\.b: differs from the run that wrote"):
        identity.require_same(before, of(a="moved", b="moved"), Path("step_1"))


def test_a_layout_equal_to_the_students_is_none_of_its_own() -> None:
    def own(*overrides: str) -> list[object]:
        config = load_config(
            ROOT / "configs/quickstart.yaml",
            ["parallel.tensor=2", "parallel.data=2", *overrides],
            check_files=False,
        )
        return [entry.parallel for entry in config.frozen.values()]

    assert own() == [None] == own("teacher.parallel={tensor: 2}")
    (given,) = own("teacher.parallel={pipeline: 2}")
    assert given is not None and (given.tensor, given.pipeline, given.ranks) == (1, 2, 2)
    entries = "{a: x, b: {path: y, parallel: {tensor: 4}}}"
    several = own("teacher.parallel.pipeline=2", f"model.teachers={entries}", "model.teacher=null")
    assert [(p.tensor, p.pipeline) for p in several] == [(1, 2), (4, 1)]
    assert own("teacher.parallel.pipeline=2", "algorithm.name=grpo") == [given], "its reference"
    kd = ["algorithm.name=kd", "train.batch_sequences=8", "rollout=null"]
    assert own(*kd, "evaluation={before: false, after: false}") == []
