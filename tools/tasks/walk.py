"""Walk: get from one number to another, each step written down.

    prompt    17>72
    responses 6872    or    25336672    or    ...

A step adds or subtracts 1..9, or multiplies by 2..9, and stays in 10..99, two digits a value; a
route has at most nine steps. Any route is right, so the verifier walks it. Easy: two steps are
enough. Hard: three or four are needed. The teacher never sees a value of 80 or more: it knows the
low ground, and a response that strays above it, or has to go there, is one on which it cannot be
trusted.
"""

from __future__ import annotations

import random
import re
from functools import cache

from tools.tasks.family import EASY, LARGEST, Problem, Task

LONGEST_ROUTE = 9
HABIT = 0.5  # share of supervised responses that take a shortest route at once
GIVES_UP = 0.3  # share of the others that end before the goal
DETOUR = (3, 5)  # random steps of the others before they take one
HIGH_GROUND = 80
_ROUTE = re.compile(r"(?:[1-9]\d)+")
SMALLEST = 10


@cache
def steps_from(value: int) -> tuple[int, ...]:
    """Where one step can lead, in order."""
    near = {value + move for move in range(-9, 10) if move}
    times = {value * factor for factor in range(2, 10)}
    return tuple(
        sorted(after for after in near | times if SMALLEST <= after <= LARGEST and after != value)
    )


def verify_walk(response: str, answer: str) -> bool:
    """Whether ``response`` is a route from start to goal of ``answer`` (`17>72`)."""
    text = response.strip()
    if not _ROUTE.fullmatch(text):
        return False
    value, goal = parse_walk(answer)
    values = [int(pair) for pair in re.findall("..", text)]
    if len(values) > LONGEST_ROUTE or values[-1] != goal:
        return False
    for after in values:
        if after not in steps_from(value):
            return False
        value = after
    return True


def parse_walk(text: str) -> tuple[int, int]:
    """Start and goal of `17>72`."""
    start, _, goal = text.partition(">")
    return int(start), int(goal)


@cache
def distances(goal: int, top: int = LARGEST) -> dict[int, int]:
    """Fewest steps to ``goal`` from every value that can reach it without a value above ``top``."""
    found, edge = {goal: 0}, [goal]
    while edge:
        reached = set(edge)
        edge = [
            value
            for value in range(SMALLEST, top + 1)
            if value not in found and reached.intersection(steps_from(value))
        ]
        for value in edge:
            found[value] = min(found[after] for after in steps_from(value) if after in found) + 1
    return found


def shortest(start: int, goal: int, top: int = LARGEST) -> list[int]:
    """The values of a shortest route, of several the one by the highest values."""
    far, route, value = distances(goal, top), list[int](), start
    while value != goal:
        closer = (v for v in steps_from(value) if v <= top and far.get(v) == far[value] - 1)
        value = max(closer)
        route.append(value)
    return route


def _draw(rng: random.Random, split: str) -> Problem:
    """Easy: two steps apart; hard: three or four."""
    while True:
        start, goal = rng.randint(SMALLEST, LARGEST), rng.randint(SMALLEST, LARGEST)
        away = distances(goal).get(start)
        if away in ((2,) if split == EASY else (3, 4)):
            prompt = f"{start}>{goal}"
            return {"prompt": prompt, "answer": prompt, "data_source": "walk"}


def _solve(row: Problem, rng: random.Random) -> str:
    """A shortest route; or some random steps, and a shortest route from there or no more.

    Where start and goal are on the low ground, the route stays there.
    """
    start, goal = parse_walk(row["prompt"])
    low = max(start, goal) < HIGH_GROUND and start in distances(goal, HIGH_GROUND - 1)
    top = HIGH_GROUND - 1 if low else LARGEST
    if rng.random() < HABIT:
        return "".join(map(str, shortest(start, goal, top)))
    while True:
        detour, value = list[int](), start
        for _ in range(rng.randint(*DETOUR)):
            value = rng.choice([v for v in steps_from(value) if v <= top and v != goal])
            detour.append(value)
        if rng.random() < GIVES_UP:
            return "".join(map(str, detour))
        if value in distances(goal, top):
            route = [*detour, *shortest(value, goal, top)]
            if len(route) <= LONGEST_ROUTE:
                return "".join(map(str, route))


def _known(row: Problem) -> bool:
    """Every value is on the low ground."""
    values = map(int, re.findall("[0-9]{2}", f"{row['prompt']} {row['response']}"))
    return max(values) < HIGH_GROUND


WALK = Task(
    name="walk",
    draw=_draw,
    solve=_solve,
    known=_known,
    right=verify_walk,
    left_out=f"values of {HIGH_GROUND} and more",
    verifier="tools.tasks.walk:verify_walk",
    max_prompt_tokens=8,
    max_response_tokens=11,
    hard_share=0.35,
)
