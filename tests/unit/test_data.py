"""Tokenised once, from whatever columns, in a weighted order; and what is noticed at resume."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from scope_megatron.config.sections.data import DataSource
from scope_megatron.data import crew, readers
from scope_megatron.data.dataset import PromptDataset
from scope_megatron.data.order import PromptOrder, WeightedOrder, order_of
from scope_megatron.data.tokenizer import load_tokenizer
from scope_megatron.rollout.statistics import avg_at_k
from scope_megatron.train.evaluate import join_sets
from scope_megatron.train.identity import MADE_OF, require_same
from scope_megatron.types import Prompt
from tests.unit.test_prompts import Characters, write_jsonl

ROOT = Path(__file__).parents[2]
TRAIN = ROOT / "assets/arithmetic/train.jsonl"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SCOPE_MEGATRON_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


class Counting(Characters):
    """Counts the conversations it has tokenised."""

    def __init__(self) -> None:
        self.conversations = 0

    def apply_chat_template(self, messages):
        self.conversations += 1
        return super().apply_chat_template(messages)


def sums(path: Path, count: int = 6, **more: object) -> Path:
    rows = [{"prompt": f"{i}+1", "answer": str(i + 1), "level": i % 3} for i in range(count)]
    return write_jsonl(path, *(row | more for row in rows))


def test_prompts_are_those_of_the_rows_cold_and_warm(cache: Path) -> None:
    tokenizer = load_tokenizer(ROOT / "assets/tiny-student")
    rows = [json.loads(line) for line in TRAIN.read_text().splitlines()]
    expected = [
        Prompt(
            index=index,
            token_ids=tuple(
                tokenizer.apply_chat_template([{"role": "user", "content": row["prompt"]}])
            ),
            answer=row["answer"],
            text=row["prompt"],
            source=row["data_source"],
        )
        for index, row in enumerate(rows)
    ]
    lines = [[list(p.token_ids), p.answer, [], p.source] for p in expected]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    for _ in ("cold", "warm"):
        data = PromptDataset(TRAIN, tokenizer, 32)
        assert [data[i] for i in range(len(data))] == expected
        assert data.fingerprint() == hashlib.sha256(text.encode()).hexdigest()
        assert type(data[0].token_ids[0]) is int
        with pytest.raises(IndexError):
            data[len(data)]
    shutil.rmtree(cache)
    assert PromptDataset(TRAIN, tokenizer, 32).fingerprint() == data.fingerprint()


def test_rows_are_tokenised_once(tmp_path: Path) -> None:
    path = sums(tmp_path / "a.jsonl")
    tokenizer = Counting()

    def conversations(**settings: object) -> int:
        before = tokenizer.conversations
        PromptDataset(path, tokenizer, **({"max_prompt_tokens": 50} | settings))
        return tokenizer.conversations - before

    assert [conversations(), conversations()] == [6, 0]
    assert [conversations(system_prompt="S"), conversations(system_prompt="S")] == [6, 0]
    assert conversations(max_prompt_tokens=60) == 6
    assert conversations(columns={"prompt": "answer"}) == 6
    state = path.stat()
    path.write_bytes(path.read_bytes().replace(b"0+1", b"9+1"))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))  # same size, same time
    assert conversations() == 6
    copy = tmp_path / "cache"
    for info in copy.glob("prompts/*/info.json"):
        info.unlink()  # killed before the last write
    assert conversations() == 6


def test_processes_that_come_together_tokenise_once(tmp_path: Path) -> None:
    path = sums(tmp_path / "a.jsonl", 500)
    tokenizers = [Counting() for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        sets = list(pool.map(lambda t: PromptDataset(path, t, 50), tokenizers))
    assert sum(t.conversations for t in tokenizers) == 500
    assert len({data.fingerprint() for data in sets}) == 1


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_several_processes_give_the_same_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load_tokenizer(ROOT / "assets/tiny-student")
    path = write_jsonl(
        tmp_path / "a.jsonl", *({"prompt": f"{i}+1", "answer": i} for i in range(40)), b"{"
    )
    alone = PromptDataset(path, tokenizer, 32)
    shutil.rmtree(tmp_path / "cache")
    monkeypatch.setattr(readers, "ROWS", 4)
    monkeypatch.setattr(crew, "ALONE", 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    together = PromptDataset(path, tokenizer, 32)
    assert together.fingerprint() == alone.fingerprint()
    assert [together[i] for i in range(40)] == [alone[i] for i in range(40)]
    assert together.skipped == alone.skipped
    assert [line.startswith(f"{path}:41: not JSON") for line in alone.skipped] == [True]


def test_a_place_that_cannot_hold_the_rows(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"data\.cache_dir: .*/file cannot hold .* data\.train"):
        PromptDataset(sums(tmp_path / "a.jsonl"), Characters(), 50, cache_dir="file")


def test_columns_by_mapping(tmp_path: Path) -> None:
    table = [
        {"q": {"text": "1+1"}, "extra": {"answers": ["2", "3"]}, "answer": "x", "kind": "sums"},
        {"q": {"text": "1+2"}, "extra": {"answers": []}, "answer": "x", "kind": "sums"},
    ]
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), path)
    columns = {"prompt": "q.text", "answer": "extra.answers.0", "data_source": "kind"}
    data = PromptDataset(path, Characters(), 50, columns=columns)
    assert [(p.text, p.answer, p.source) for p in (data[0],)] == [("1+1", "2", "sums")]
    assert data.skipped == [f"{path}:2: no ground truth (answer, or reward_model.ground_truth)"]
    own = DataSource(name=str(path), columns={"prompt": "kind"})
    assert PromptDataset([own], Characters(), 50, columns=columns)[0].text == "sums"
    with pytest.raises(ValueError, match="has no column problem that its columns names; it has: q"):
        PromptDataset(path, Characters(), 50, columns={"prompt": "problem"})


def test_columns_by_a_function(tmp_path: Path) -> None:
    (tmp_path / "my_rows.py").write_text(
        "def convert(row):\n"
        "    if row['level'] == 2:\n"
        "        return None\n"
        "    return {'prompt': 'Q: ' + row['prompt'], 'answer': 10 // int(row['level'])}\n"
    )
    data = PromptDataset(sums(tmp_path / "a.jsonl"), Characters(), 50, columns="my_rows:convert")
    assert [data[i].text for i in range(len(data))] == ["Q: 1+1", "Q: 4+1"]
    assert [line.split(": ", 1)[1] for line in data.skipped] == [
        "my_rows:convert raised ZeroDivisionError: integer division or modulo by zero"
    ] * 2
    assert data.store.info.sets[0]["filtered"] == 2


@pytest.mark.parametrize(
    ("wanted", "kept"),
    [(1, [1, 4]), ([0, 1], [0, 1, 3, 4]), ({"min": 1, "max": 1}, [1, 4]), ({"min": 2}, [2, 5])],
)
def test_rows_by_filter(tmp_path: Path, wanted: object, kept: list[int]) -> None:
    source = DataSource(name=str(sums(tmp_path / "a.jsonl")), filter={"level": wanted})
    data = PromptDataset([source], Characters(), 50)
    assert [data[i].text for i in range(len(data))] == [f"{i}+1" for i in kept]
    none = DataSource(name=source.name, filter={"level": 7})
    with pytest.raises(ValueError, match=r"no usable row \(the filter leaves out 6\)"):
        PromptDataset([none], Characters(), 50)


def test_a_folder_of_data_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    folder = tmp_path / "set"
    folder.mkdir()
    sums(folder / "train.jsonl", 6)
    sums(folder / "test.jsonl", 3)
    source = DataSource(name=str(folder))
    assert len(PromptDataset([source], Characters(), 50)) == 6
    assert len(PromptDataset([source], Characters(), 50, setting="data.eval")) == 3
    with pytest.raises(ValueError, match="has no split dev; set split to"):
        PromptDataset([DataSource(name=str(folder), split="dev")], Characters(), 50)


def test_chat_template_variables(tmp_path: Path) -> None:
    model = shutil.copytree(ROOT / "assets/tiny-student", tmp_path / "model")
    config = json.loads((model / "tokenizer_config.json").read_text())
    thinking = "{% if enable_thinking is defined and not enable_thinking %}0{% endif %}"
    config["chat_template"] = config.get("chat_template", "{{messages[0].content}}") + thinking
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    (model / "chat_template.jinja").unlink(missing_ok=True)
    path = sums(tmp_path / "a.jsonl", 1)
    plain, without = (load_tokenizer(model, v) for v in ({}, {"enable_thinking": False}))
    one, other = (PromptDataset(path, tokenizer, 50) for tokenizer in (plain, without))
    assert other[0].token_ids == (*one[0].token_ids, *plain.encode("0"))
    with pytest.raises(ValueError, match=r"chat_template_kwargs: .* does not use enable_thinkin;"):
        load_tokenizer(model, {"enable_thinkin": False})


def identity(data: PromptDataset) -> dict[str, object]:
    return {"data.train": data.fingerprint(), MADE_OF: data.description}


def test_what_changed_is_named_at_resume(tmp_path: Path) -> None:
    path = sums(tmp_path / "a.jsonl")
    before = identity(PromptDataset(path, Characters(), 50))
    require_same(before, identity(PromptDataset(path, Characters(), 50)), Path("step_1"))

    def change(data: PromptDataset) -> str:
        with pytest.raises(ValueError, match=r"^data\.train: differs from the run that") as error:
            require_same(before, identity(data), Path("step_1"))
        return str(error.value)

    columns = {"prompt": "answer"}
    assert 'columns of set 1 is {"prompt": "answer"}, was null' in change(
        PromptDataset(path, Characters(), 50, columns=columns)
    )
    filtered = DataSource(name=str(path), filter={"level": 1})
    assert "filter of set 1 is" in change(PromptDataset([filtered], Characters(), 50))
    assert "data.system_prompt is S, was null" in change(
        PromptDataset(path, Characters(), 50, system_prompt="S")
    )
    path.write_bytes(path.read_bytes().replace(b"0+1", b"9+1"))
    assert f"contents of set 1 {path} is" in change(PromptDataset(path, Characters(), 50))
    moved = dict(before) | {"data.train": "other"}
    moved[MADE_OF] = dict(before[MADE_OF]) | {"revision of set 1": "b" * 40}
    with pytest.raises(ValueError, match="revision of set 1 is bbbbbbbbbbbb, was null"):
        require_same(before, moved, Path("step_1"))
    teacher = {"model.teacher": "org/t@" + "a" * 40}
    with pytest.raises(ValueError, match=r"needs the same one: model\.teacher=org/t@aaaaa"):
        require_same(teacher, {"model.teacher": "org/t@" + "b" * 40}, Path("step_1"))
    require_same({"seed": 1}, {"seed": 1} | before, Path("step_1"))  # of an older version


def test_order_without_weights_is_as_ever() -> None:
    assert isinstance(order_of([3, 4], [None, None], 5, True), PromptOrder)
    drawn = order_of([3, 4], [None, None], 5, True).batch(0, 7)
    assert drawn == [int(i) for i in np.random.default_rng([5, 0]).permutation(7)]


def test_weights_are_shares_of_every_stretch() -> None:
    order = WeightedOrder([10, 1000], [3, 1], seed=5)
    steps = [order.batch(step, 8) for step in range(500)]
    assert all(sum(i < 10 for i in batch) == 6 for batch in steps)
    small = [i for batch in steps for i in batch if i < 10]
    assert all(sorted(small[e : e + 10]) == list(range(10)) for e in range(0, 3000, 10))
    large = [i for batch in steps for i in batch if i >= 10]
    assert len(set(large)) == 1000 and set(large) == set(range(10, 1010))
    resumed = WeightedOrder([10, 1000], [3, 1], seed=5)
    assert [resumed.batch(step, 8) for step in range(250, 500)] == steps[250:]
    far = 10**7
    assert order.batch(far, 8) == resumed.batch(far, 8)
    assert WeightedOrder([10, 1000], [3, 1], seed=6).batch(0, 8) != steps[0]
    third = WeightedOrder([5, 5, 5], [1, 1, 1], seed=1).batch(0, 300)
    assert [sum(i // 5 == place for i in third) for place in range(3)] == [100, 100, 100]


def test_evaluation_sets_are_averaged_and_kept_apart() -> None:
    one, two = ({"eval/avg@2": avg_at_k(rows)} for rows in ([[True, True]], [[True, False]]))
    assert join_sets({"": one}) == one
    assert join_sets({"a": one, "b": two}) == {
        "eval/avg@2": 0.75,
        "eval/a/avg@2": 1.0,
        "eval/b/avg@2": 0.5,
    }
