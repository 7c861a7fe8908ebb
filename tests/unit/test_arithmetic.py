"""The quickstart's data and tokenizer: true arithmetic, held-out problems, exact round trips."""

from __future__ import annotations

import json
import operator
import re
import string
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tools.make_arithmetic import make_problems, write_splits
from tools.tiny_tokenizer import make_tokenizer

OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul}


def evaluate_left_to_right(prompt: str) -> list[int]:
    """Every value of a chain, start value first; its own parser, not the generator's."""
    start, *operations = prompt.split(" ")
    values = [int(start)]
    for operation in operations:
        values.append(OPERATORS[operation[0]](values[-1], int(operation[1:])))
    return values


def read_rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_line_is_true_arithmetic_and_the_answer_is_the_chain_s_value() -> None:
    for row in make_problems(2000, seed=3):
        values = evaluate_left_to_right(row["prompt"])
        *lines, box = row["response"].split("\n")
        assert len(lines) == len(values) - 1 and 3 <= len(lines) <= 5
        assert all(0 <= value <= 99 for value in values)
        for line, before, after in zip(lines, values[:-1], values[1:], strict=True):
            left, sign, operand, result = re.fullmatch(r"(\d+)([-+*])(\d)=(\d+)", line).groups()
            assert OPERATORS[sign](int(left), int(operand)) == int(result) == after
            assert int(left) == before
        assert box == f"\\boxed{{{values[-1]}}}" and row["answer"] == str(values[-1])


def test_same_seed_same_files_other_seed_other_files(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_splits(tmp_path / name, 50, 10, seed)
    for split in ("train.jsonl", "eval.jsonl"):
        first = (tmp_path / "a" / split).read_bytes()
        assert first == (tmp_path / "b" / split).read_bytes()
        assert first != (tmp_path / "c" / split).read_bytes()


def test_held_out_problems_are_disjoint_and_do_not_move_with_the_train_size(tmp_path: Path) -> None:
    write_splits(tmp_path / "small", 100, 64, seed=5)
    write_splits(tmp_path / "large", 3000, 64, seed=5)
    train = [row["prompt"] for row in read_rows(tmp_path / "large" / "train.jsonl")]
    held_out = [row["prompt"] for row in read_rows(tmp_path / "large" / "eval.jsonl")]
    assert len(set(train)) == 3000 and len(set(held_out)) == 64
    assert not set(train) & set(held_out)
    small = (tmp_path / "small" / "eval.jsonl").read_bytes()
    assert small == (tmp_path / "large" / "eval.jsonl").read_bytes()


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--eval"):
        write_splits(tmp_path, 10, 0, seed=1)


def test_tokenizer_round_trips_and_has_one_token_a_character(tmp_path: Path) -> None:
    make_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    printable = "".join(chr(code) for code in range(32, 127))
    for text in (printable, " a  , b .\n\n don't ", string.punctuation, "3+4=7\n\\boxed{7}"):
        ids = tokenizer.encode(text, add_special_tokens=True)
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
        assert len(ids) == len(text) - 6 * text.count("\\boxed{")
        assert tokenizer.unk_token_id not in ids
    assert tokenizer.encode("é") == [tokenizer.unk_token_id]
    assert len(tokenizer) % 128 != 0


def test_chat_template_gives_the_prompt_the_models_were_trained_on(tmp_path: Path) -> None:
    make_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    messages = [{"role": "user", "content": "14 +7"}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert prompt == "<|user|>14 +7<|assistant|>"
    assert len(tokenizer.encode(prompt)) == len("14 +7") + 2
    messages.append({"role": "assistant", "content": "14+7=21"})
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    assert whole == prompt + "14+7=21<eos>"
    assert tokenizer.encode(whole)[-1] == tokenizer.eos_token_id


def test_prompts_and_responses_are_short(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path)
    rows = make_problems(500, seed=9)
    assert max(len(tokenizer.encode(row["prompt"])) for row in rows) <= 17
    assert max(len(tokenizer.encode(row["response"])) for row in rows) <= 44
