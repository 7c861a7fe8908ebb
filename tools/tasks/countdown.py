"""Countdown: reach a target with some of the given numbers, each used at most once.

    prompt    3 9 5 8=17
    responses 9+8    or    7-2;4+4;9+8    or    9+5+3    or    ...

An expression is worked from left to right (`3+5*2` is 16), every value on the way is in 0..99. A
response may scribble other sums first, the last expression counts; and many expressions are right,
so the verifier evaluates instead of comparing. Easy: two of the four numbers reach it by plus or
minus. Hard: not so, but two by times. The teacher never sees times: it is at home with the easy
problems and has nothing to say about the hard ones.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache

from tools.tasks.family import EASY, LARGEST, Problem, Task

SIGNS = "+-*"
NUMBERS, LARGEST_NUMBER, LONGEST = 4, 9, 2  # given; each up to; used by drawn solutions at most
HABIT = 0.45  # share of supervised responses that are the first solution in order, at once
SUMS = (2, 3)  # that the others begin with
GIVES_UP = 0.2  # share of the others that end with a random sum as well
_EXPRESSION = re.compile(r"\d{1,2}(?:[-+*]\d{1,2})+")


def apply_sign(value: int, sign: str, operand: int) -> int:
    """``value`` sign ``operand``."""
    return {"+": value + operand, "-": value - operand, "*": value * operand}[sign]


def verify_countdown(response: str, answer: str) -> bool:
    """Whether the last expression of ``response`` solves ``answer`` (`3 9 5 8=17`)."""
    text = response.strip().rpartition(";")[2]
    if not _EXPRESSION.fullmatch(text):
        return False
    numbers, target = parse_countdown(answer)
    used = [int(number) for number in re.findall(r"\d+", text)]
    if Counter(used) - Counter(numbers):
        return False
    value = used[0]
    for sign, operand in zip(re.findall(r"[-+*]", text), used[1:], strict=True):
        value = apply_sign(value, sign, operand)
        if not 0 <= value <= LARGEST:
            return False
    return value == target


def parse_countdown(text: str) -> tuple[tuple[int, ...], int]:
    """Numbers and target of `3 9 5 8=17`."""
    numbers, _, target = text.partition("=")
    return tuple(map(int, numbers.split())), int(target)


@cache
def expressions(numbers: tuple[int, ...], signs: str = SIGNS) -> dict[int, tuple[str, ...]]:
    """Targets that up to ``LONGEST`` of the numbers reach, each with its expressions: short ones
    first, then in order."""
    found: dict[int, set[str]] = {}
    for i, first in enumerate(numbers):
        rest = (*numbers[:i], *numbers[i + 1 :])
        for value, text in _longer(first, str(first), rest, signs, LONGEST - 1):
            found.setdefault(value, set()).add(text)
    return {
        target: tuple(sorted(texts, key=lambda text: (len(text), text)))
        for target, texts in found.items()
    }


def _longer(
    value: int, text: str, numbers: Sequence[int], signs: str, most: int
) -> Iterator[tuple[int, str]]:
    """(value, text) of every chain that goes on from ``text`` with up to ``most`` numbers."""
    for i, operand in enumerate(numbers if most else ()):
        rest = (*numbers[:i], *numbers[i + 1 :])
        for sign in signs:
            after = apply_sign(value, sign, operand)
            if 0 <= after <= LARGEST:
                longer = f"{text}{sign}{operand}"
                yield after, longer
                yield from _longer(after, longer, rest, signs, most - 1)


def _draw(rng: random.Random, split: str) -> Problem:
    """A problem whose target no single number is."""
    while True:
        numbers = tuple(rng.randint(1, LARGEST_NUMBER) for _ in range(NUMBERS))
        plain = set(expressions(numbers, "+-"))
        targets = plain if split == EASY else set(expressions(numbers)) - plain
        if choices := sorted(targets - set(numbers)):
            prompt = f"{' '.join(map(str, numbers))}={rng.choice(choices)}"
            return {"prompt": prompt, "answer": prompt, "data_source": "countdown"}


def _solve(row: Problem, rng: random.Random) -> str:
    """The first solution; or some random sums, and any solution or none."""
    numbers, target = parse_countdown(row["prompt"])
    solutions = expressions(numbers, "+-").get(target) or expressions(numbers)[target]
    if rng.random() < HABIT:
        return solutions[0]
    signs = SIGNS if "*" in solutions[0] else "+-"
    scribbled = [_sum(signs, rng) for _ in range(rng.randint(*SUMS))]
    if rng.random() >= GIVES_UP:
        scribbled.append(rng.choice(solutions))
    return ";".join(scribbled)


def _sum(signs: str, rng: random.Random) -> str:
    """A random one, of two digits or three."""
    more = rng.randint(1, 2)
    return _digit(rng) + "".join(rng.choice(signs) + _digit(rng) for _ in range(more))


def _digit(rng: random.Random) -> str:
    return str(rng.randint(1, 9))


def _known(row: Problem) -> bool:
    """Nothing in it is multiplied."""
    return "*" not in row["response"]


COUNTDOWN = Task(
    name="countdown",
    draw=_draw,
    solve=_solve,
    known=_known,
    right=verify_countdown,
    left_out="times",
    verifier="tools.tasks.countdown:verify_countdown",
    max_prompt_tokens=16,
    max_response_tokens=26,
)
