"""The tasks: right answers are right, wrong ones wrong, and the teacher's rows lack a part."""

from __future__ import annotations

import json
import random
import re
from itertools import pairwise
from pathlib import Path

import pytest

from tools.tasks import countdown, walk, write
from tools.tasks.family import EASY, HARD, Problem, Task
from tools.tasks.table import TASKS, task_named
from tools.tasks.write import write_rollout_files, write_supervised_files
from tools.tiny_tokenizer import make_tokenizer


def left_to_right(text: str) -> int | None:
    """The value of an expression without precedence, None where one on the way is not in 0..99; its
    own reading, by Python's arithmetic."""
    value, *rest = re.split(r"(?=[-+*])", text)
    total = int(value)
    for part in rest:
        total = int(eval(f"{total}{part}"))
        if total not in range(100):
            return None
    return total


def rows(task: Task, split: str, count: int = 200) -> list[Problem]:
    rng = random.Random(5)
    drawn = [task.draw(rng, split) for _ in range(count)]
    return [row | {"response": task.solve(row, rng)} for row in drawn]


def reaches(response: str, prompt: str) -> bool:
    """Whether a countdown's last try uses given numbers and is worth the target."""
    numbers, target = prompt.split("=")
    last, given = response.split(";")[-1], numbers.split()
    for used in re.findall(r"\d+", last):
        if used not in given:
            return False
        given.remove(used)
    return left_to_right(last) == int(target)


@pytest.mark.parametrize("split", [EASY, HARD])
def test_countdown_s_responses_are_habits_detours_and_failures(split: str) -> None:
    found = rows(countdown.COUNTDOWN, split)
    right = [countdown.verify_countdown(row["response"], row["answer"]) for row in found]
    assert right == [reaches(row["response"], row["prompt"]) for row in found]
    assert 0.8 < sum(right) / len(right) < 0.97
    at_once = sum(";" not in row["response"] for row in found) / len(found)
    assert 0.35 < at_once < 0.55
    assert any("*" in row["response"] for row in found) is (split == HARD)


@pytest.mark.parametrize(
    ("response", "right"),
    [
        ("8*2", True),
        ("2*8", True),
        ("3+5*2", True),
        ("5*3;8*2", True),
        ("nonsense;8*2", True),
        ("8*2;5*3", False),
        ("8+8", False),  # 8 is there once
        ("2*2*8-16", False),
        ("16", False),  # no operation
        ("3-8+5*2*8", False),  # below 0 on the way
        ("8*2;", False),
        ("", False),
        ("8*2=16", False),
    ],
)
def test_countdown_is_judged_by_its_last_try(response: str, right: bool) -> None:
    assert countdown.verify_countdown(response, "3 5 2 8=16") is right


def test_countdown_s_hard_problems_cannot_be_had_without_times() -> None:
    for row in rows(countdown.COUNTDOWN, HARD, 50):
        numbers, target = countdown.parse_countdown(row["prompt"])
        assert target not in countdown.expressions(numbers, "+-")
        assert all("*" in text for text in countdown.expressions(numbers)[target])


@pytest.mark.parametrize(
    ("response", "right"),
    [
        ("6872", True),  # 17*4 then +4
        ("25336672", True),
        ("687272", False),  # a step of 0
        ("72", False),  # no step leads there
        ("176872", False),
        ("6871", False),
        ("68 72", False),
        ("6872 ", True),
        ("181920212223257572", True),  # nine steps
        ("18192021222324257572", False),
        ("687", False),
        ("0872", False),
        ("", False),
    ],
)
def test_a_walk_is_judged_step_by_step(response: str, right: bool) -> None:
    assert walk.verify_walk(response, "17>72") is right


def test_walks_are_as_far_as_their_split_says() -> None:
    for split, allowed in ((EASY, {2}), (HARD, {3, 4})):
        for row in rows(walk.WALK, split, 100):
            start, goal = walk.parse_walk(row["prompt"])
            edge, steps = {start}, 0
            while goal not in edge:
                edge, steps = (
                    {after for value in edge for after in walk.steps_from(value)},
                    steps + 1,
                )
            assert steps in allowed
            assert len(walk.shortest(start, goal)) == steps
            values = [start, *map(int, re.findall("..", row["response"]))]
            assert all(b in walk.steps_from(a) for a, b in pairwise(values))
            assert walk.verify_walk(row["response"], row["answer"]) == (values[-1] == goal)


@pytest.mark.parametrize("name", sorted(TASKS))
def test_files_are_apart_and_the_teacher_s_lack_the_part_left_out(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = TASKS[name]
    monkeypatch.setattr(write, "TRAIN", 400)
    for folder in ("a", "b"):
        held_out = write_rollout_files(task, tmp_path / folder, 7)
        write_supervised_files(task, tmp_path / folder, 7, held_out, count=300)
    files = {path.stem: path for path in (tmp_path / "a").iterdir()}
    assert sorted(files) == ["easy", "hard", "student", "teacher", "train", "tuning"]
    for path in files.values():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    read = {
        stem: [json.loads(line) for line in path.read_text().splitlines()]
        for stem, path in files.items()
    }
    prompts = {stem: {row["prompt"] for row in found} for stem, found in read.items()}
    for stem in ("easy", "hard", "tuning"):
        assert not any(prompts[stem] & prompts[other] for other in prompts if other != stem)
    unknown = sum(not task.known(row) for row in read["teacher"])
    assert 0 < unknown < 60 if task.glimpses else unknown == 0
    assert all(task.right(row["response"], row["answer"]) for row in read["teacher"])
    assert not all(task.known(row) for row in read["student"])
    assert not any("response" in row for row in read["train"])


def test_prompts_and_responses_fit(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path, numbers=True)
    for task in (countdown.COUNTDOWN, walk.WALK):
        for row in [*rows(task, EASY), *rows(task, HARD)]:
            chat = [{"role": "user", "content": row["prompt"]}]
            text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
            assert len(tokenizer.encode(text)) <= task.max_prompt_tokens
            assert len(tokenizer.encode(row["response"])) < task.max_response_tokens


def test_numbers_are_one_token_each(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path, numbers=True)
    for text, count in (("7>52", 3), ("10 99 100", 6), ("05", 2), ("3+5*2", 5)):
        ids = tokenizer.encode(text)
        assert len(ids) == count and tokenizer.decode(ids) == text


def test_a_task_that_is_none_is_named() -> None:
    with pytest.raises(ValueError, match="--task: 'sums' is no task"):
        task_named("sums")
