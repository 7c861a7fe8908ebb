"""Datasets: what is read, what is left out and why, and the order of the steps."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from typer.testing import CliRunner

from scope_megatron.data.dataset import PromptDataset
from scope_megatron.data.order import PromptOrder
from scope_megatron.data.readers import read_rows
from scope_megatron.rollout.verify.mathematics import MathVerifier
from scope_megatron.types import Verdict
from tools.prepare_data import app

DEEPMATH = Path(__file__).parents[1] / "data" / "deepmath_20.parquet"


class Characters:
    """A real tokenizer of one id per character; roles are marked by their first letter."""

    name_or_path = "characters"
    vocab_size = 0x110000
    eos_id = 0
    eos_ids = frozenset({0})

    def encode(self, text):
        return [ord(c) for c in text]

    def decode(self, ids, skip_special=True):
        return "".join(chr(i) for i in ids if i or not skip_special)

    def apply_chat_template(self, messages):
        if messages[-1]["role"] != "user":
            raise ValueError("the last message must be the user's")
        return self.encode("".join(f"{m['role'][0]}:{m['content']}|" for m in messages))

    def parts(self):
        return {"model.tokenizer": "characters"}

    def token_map_fingerprint(self):
        return "characters"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SCOPE_MEGATRON_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_teacher_reads_a_privileged_prompt(tmp_path, cache) -> None:
    rows = write_jsonl(tmp_path / "r.jsonl", *({"prompt": p, "answer": a} for p, a in RIDDLES))
    told = PromptDataset(rows, Characters(), 20, privileged=" ({answer}!)")
    texts = [("".join(map(chr, p.token_ids)), "".join(map(chr, p.privileged_ids))) for p in told]
    assert texts == [("u:one|", "u:one (1!)|"), ("u:two|", "u:two (2!)|")]
    assert "with teacher.privileged the prompt has 22 tokens" in told.skipped[0]
    plain = PromptDataset(rows, Characters(), 20)
    assert [p.privileged_ids for p in plain] == [(), (), ()]
    assert plain.fingerprint() != told.fingerprint(), "a resumed run needs the same"


RIDDLES = [
    ("one", "1"),
    ("two", ["2", "zwei"]),
    ("three", "1234567890"),
]


def write_jsonl(path: Path, *rows: object) -> Path:
    """Rows are objects, or lines as they stand."""
    lines = [r if isinstance(r, bytes) else json.dumps(r).encode() for r in rows]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def load(path, max_prompt_tokens=100, **settings) -> PromptDataset:
    return PromptDataset(path, Characters(), max_prompt_tokens, **settings)


def test_jsonl_rows(tmp_path):
    chat = [{"role": "system", "content": "S"}, {"role": "user", "content": "2+2"}]
    path = write_jsonl(
        tmp_path / "a.jsonl",
        {"prompt": "1+1", "answer": "2", "data_source": "sums"},
        {"prompt": chat, "answer": 4},
    )
    data = load(path, system_prompt="Think.")
    assert len(data) == 2 and data.skipped == []
    first, second = data[0], data[1]
    assert bytes(first.token_ids) == b"s:Think.|u:1+1|"
    assert (first.index, first.answer, first.source, first.text) == (0, "2", "sums", "1+1")
    assert bytes(second.token_ids) == b"s:S|u:2+2|"  # its own system message stays
    assert (second.index, second.answer, second.response_ids) == (1, "4", ())


def test_unusable_rows_are_named(tmp_path):
    path = write_jsonl(
        tmp_path / "a.jsonl",
        {"prompt": "1+1", "answer": "2"},
        b'{"prompt": "1+1", "answ',
        b"",
        b'{"prompt": "\xff", "answer": "2"}',
        b"[1, 2]",
        {"prompt": "1+1"},
        {"prompt": "1+1", "answer": " "},
        {"prompt": "  ", "answer": "2"},
        {"prompt": [], "answer": "2"},
        {"prompt": [{"role": "user"}], "answer": "2"},
        {"prompt": [{"role": "assistant", "content": "x"}], "answer": "2"},
        {"prompt": "9" * 98, "answer": "2"},
        {"prompt": "9" * 97, "answer": "2"},
    )
    data = load(path)
    assert [p.text for p in data] == ["1+1", "9" * 97]
    assert [p.index for p in data] == [0, 1]
    named = {int(line.removeprefix(f"{path}:").split(":")[0]): line for line in data.skipped}
    reasons = {
        2: "not JSON",
        4: "not UTF-8",
        5: "not a JSON object",
        6: "no ground truth",
        7: "no ground truth",
        8: "the prompt is empty",
        9: "no prompt",
        10: "role and a content",
        11: "must be the user's",
        12: "has 101 tokens, data.max_prompt_tokens is 100",
    }
    assert set(named) == set(reasons) and len(data.skipped) == len(reasons)
    for line, reason in reasons.items():
        assert reason in named[line]


def test_rows_that_json_alone_can_hold_are_named(tmp_path):
    """Deeper than can be read, longer than a number may be, and halves of characters."""
    good = {"prompt": "1+1", "answer": "2"}
    half = {"prompt": "\ud800", "answer": "\udfff", "data_source": "\ud800", "verifier": "\ud800"}
    chat = [{"role": "user", "content": "1\ud8001"}]
    path = write_jsonl(
        tmp_path / "a.jsonl",
        good,
        b'{"prompt": "1", "answer": "2", "more": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"prompt": "1", "answer": 1' + b"0" * 5000 + b"}",
        *({**good, name: value} for name, value in half.items()),
        good | {"prompt": chat},
        good | {"answer": ["2", "\ud800"]},
        good | {"teacher": "\ud800"},
        good | {"prompt": [{"role": "\ud800", "content": "1+1"}]},
        good,
    )
    data = load(path)
    assert [p.text for p in data] == ["1+1", "1+1"]
    reasons = ["not JSON (nested too deeply)", "not JSON (Exceeds the limit (4300 digits)"]
    names = ("prompt", "answer", "data_source", "verifier", "prompt", "answer", "teacher", "prompt")
    reasons += [f"the {name} holds half a character (\\ud" for name in names]
    for number, (line, reason) in enumerate(zip(data.skipped, reasons, strict=True), start=2):
        assert line.startswith(f"{path}:{number}: {reason}")
    depths = range(sys.getrecursionlimit() - 60, sys.getrecursionlimit())
    deep = [b'{"prompt": "1", "answer": {"a": ' + b"[" * n + b"]" * n + b"}}" for n in depths]
    reasons = {line.split(": ")[1] for line in load(write_jsonl(path, good, *deep)).skipped}
    assert reasons == {"not JSON (nested too deeply)"}
    answered = good | {"response": "\ud800"}
    with pytest.raises(ValueError, match="the response holds half a character"):
        load(write_jsonl(tmp_path / "b.jsonl", answered), need_response=True)


def test_unusable_files_are_errors_naming_the_setting(tmp_path):
    good = write_jsonl(tmp_path / "good.jsonl", {"prompt": "1", "answer": "1"})
    fake = tmp_path / "fake.parquet"
    fake.write_text("not parquet")
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    table = tmp_path / "columns.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"question": ["1+1"], "label": ["2"]}), table)
    no_answer = write_jsonl(tmp_path / "no_answer.jsonl", {"prompt": "1", "solution": "2"})
    for path, what in [
        (tmp_path / "none.jsonl", "does not exist"),
        (tmp_path / "data.csv", r"suffix: it must be \.jsonl or \.parquet"),
        (empty, "no usable row .the file is empty"),
        (fake, "not a readable parquet file"),
        (table, "no column prompt; it has: question, label"),
        (no_answer, r"no column answer \(or reward_model\); it has: prompt, solution"),
        (write_jsonl(tmp_path / "bad.jsonl", b"{"), "no usable row .*not JSON"),
        (write_jsonl(tmp_path / "long.jsonl", {"prompt": "9" * 200, "answer": "1"}), "204|203 tok"),
    ]:
        with pytest.raises(ValueError, match=rf"data\.eval: .*{what}"):
            load([good, path], setting="data.eval")
    with pytest.raises(ValueError, match="no column response; it has: prompt, answer"):
        load(good, need_response=True)


def test_responses_for_supervised_training(tmp_path):
    path = write_jsonl(
        tmp_path / "a.jsonl",
        {"prompt": "1+1", "response": r" \boxed{2}"},
        {"prompt": "1+1", "answer": "2", "response": ""},
    )
    data = load(path, need_response=True)
    assert bytes(data[0].response_ids) == rb" \boxed{2}" + b"\0"
    assert data[0].answer == ""
    assert [line.split(": ")[1] for line in data.skipped] == ["no response"]


def test_several_files_and_fingerprint(tmp_path):
    a = write_jsonl(tmp_path / "a.jsonl", {"prompt": "1", "answer": "1"})
    b = write_jsonl(tmp_path / "b.jsonl", {"prompt": "2", "answer": "2"})
    copy = write_jsonl(tmp_path / "copy.jsonl", {"answer": "1", "prompt": "1", "note": "unused"})
    assert [p.index for p in load([a, b])] == [0, 1]
    assert load(a).fingerprint() == load(copy).fingerprint()
    prints = {load(x).fingerprint() for x in (a, b, [a, b], [b, a])}
    assert len(prints) == 4
    assert load(a, system_prompt="x").fingerprint() not in prints
    write_jsonl(copy, {"prompt": "1", "answer": "01"})
    assert load(copy).fingerprint() not in prints


def test_answers_may_be_lists_or_tests(tmp_path):
    tests = {"inputs": ["1"], "outputs": ["2"]}
    rows = read_rows(
        write_jsonl(
            tmp_path / "a.jsonl",
            {"prompt": "p", "answer": ["1/2", 0.5, ""], "verifier": "exact"},
            {"prompt": "p", "answer": ["1/2"]},
            {"prompt": "p", "answer": tests},
            {"prompt": "p", "answer": [{"input": "1", "output": "2"}]},
            {"prompt": "p", "answer": []},
        )
    )
    assert [row.answer for row in rows.usable[:2]] == [("1/2", "0.5"), "1/2"]
    assert [row.verifier for row in rows.usable[:2]] == ["exact", ""]
    assert json.loads(rows.usable[2].answer) == tests
    assert json.loads(rows.usable[3].answer) == [{"input": "1", "output": "2"}]
    assert len(rows.skipped) == 1 and "no ground truth" in rows.skipped[0]


def test_tests_of_programs_have_to_test_something(tmp_path):
    """Rows that the code verifier grades are looked at, by whatever they get it."""
    good, bad = {"tests": ["assert f(1) == 2"]}, {"tests": ["def run():\n    assert f(1) == 2"]}
    path = write_jsonl(
        tmp_path / "a.jsonl",
        {"prompt": "a", "answer": good, "data_source": "mbpp"},
        {"prompt": "b", "answer": bad, "data_source": "mbpp"},
        {"prompt": "c", "answer": bad, "verifier": "code"},
        {"prompt": "d", "answer": bad, "data_source": "mbpp", "verifier": "custom"},
        {"prompt": "e", "answer": bad},
        {"prompt": "f", "answer": "[" * 5000, "verifier": "code"},
        {"prompt": "g", "answer": good | {"test_imports": 5}, "verifier": "code"},
    )
    data = load(path)
    assert [p.text for p in data] == ["a", "d", "e"]
    told = "the tests never run run; name it in a statement, or test_run, or give entry_point"
    for line, skipped in zip((2, 3), data.skipped[:2], strict=True):
        assert skipped.startswith(f"{path}:{line}: {told}")
    assert "not JSON" in data.skipped[2] and "not code" in data.skipped[3]
    assert [p.text for p in load(path, verifier="code")] == ["a"]
    assert len(load(path, verifier="custom")) == 7
    with pytest.raises(ValueError, match=f"data.train: .* no usable row .*:1: {told}"):
        load(write_jsonl(tmp_path / "b.jsonl", {"prompt": "p", "answer": bad, "verifier": "code"}))


def test_deepmath_rows_verify_against_themselves():
    data = load(DEEPMATH, max_prompt_tokens=4096)
    assert len(data) == 20 and data.skipped == []
    assert {p.source for p in data} == {"deepmath_new"}
    assert data[0].answer == "n" and data[0].text.startswith("Consider a set")
    assert bytes(data[0].token_ids).decode().startswith("u:Consider a set")
    with MathVerifier(timeout_s=20.0, algebra_only=True) as verifier:
        verdicts = verifier.grade([(rf"\boxed{{{p.answer}}}", p.answer) for p in data])
    assert verdicts == [Verdict.CORRECT] * 20


@pytest.mark.parametrize("size", [7, 12, 1])
def test_order_covers_each_epoch_once(size):
    order = PromptOrder(size, seed=3)
    drawn = [i for step in range(size * 3) for i in order.batch(step, 5)]
    epochs = [drawn[e * size : (e + 1) * size] for e in range(15)]
    assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
    assert size == 1 or len({tuple(epoch) for epoch in epochs}) > 10


def test_order_depends_on_seed_and_step_alone():
    through = PromptOrder(50, seed=3)
    batches = [through.batch(step, 8) for step in range(40)]
    resumed = PromptOrder(50, seed=3)
    assert [resumed.batch(step, 8) for step in range(23, 40)] == batches[23:]
    assert [resumed.batch(step, 8) for step in reversed(range(40))] == batches[::-1]
    assert PromptOrder(50, seed=4).batch(0, 8) != batches[0]
    assert PromptOrder(3, seed=3, shuffle=False).batch(1, 4) == [1, 2, 0, 1]
    with pytest.raises(ValueError, match=r"data\.train"):
        PromptOrder(0, seed=3)


def test_prepare_data_converts_there_and_back(tmp_path):
    run = CliRunner().invoke
    middle, back = tmp_path / "rows.jsonl", tmp_path / "back.parquet"
    assert run(app, ["convert", str(DEEPMATH), str(middle)]).exit_code == 0
    assert run(app, ["convert", str(middle), str(back)]).exit_code == 0
    assert load(back, 4096).fingerprint() == load(DEEPMATH, 4096).fingerprint()
    first, again = (pyarrow.parquet.read_table(p).to_pylist()[0] for p in (DEEPMATH, back))
    assert again["prompt"] == first["prompt"] and again["reward_model"] == first["reward_model"]


def test_prepare_data_splits_by_seed(tmp_path):
    run = CliRunner().invoke
    arguments = ["convert", str(DEEPMATH), str(tmp_path / "d.jsonl"), "--split", "3:1"]
    result = run(app, arguments)
    assert result.exit_code == 0 and "20 rows, 0 skipped" in result.output
    parts = [read_rows(tmp_path / f"d-{name}.jsonl").usable for name in ("train", "eval")]
    assert [len(p) for p in parts] == [15, 5]
    texts = [r.messages[0]["content"] for p in parts for r in p]
    assert sorted(texts) == sorted(r.messages[0]["content"] for r in read_rows(DEEPMATH).usable)
    before = (tmp_path / "d-eval.jsonl").read_bytes()
    run(app, [*arguments, "--seed", "5"])
    assert (tmp_path / "d-eval.jsonl").read_bytes() != before
    run(app, arguments)
    assert (tmp_path / "d-eval.jsonl").read_bytes() == before
    assert run(app, [*arguments[:-1], "3"]).exit_code == 2


def test_prepare_data_verify_names_what_fails(tmp_path):
    path = write_jsonl(
        tmp_path / "a.jsonl",
        {"prompt": "p", "answer": r"\frac{1}{2}"},
        {"prompt": "p", "answer": "I + tE_{a,b}"},
        b"{",
    )
    output = CliRunner().invoke(app, ["verify", str(path)]).output
    assert "2 rows, 1 skipped" in output and f"{path}:3: not JSON" in output
    assert "the math verifier: 2 of 2" in output
    assert "its algebra alone: 1 of 2" in output and f"{path}:2: incorrect" in output
