"""Chains: the quickstart's arithmetic, with its shipped models and one answer a problem.

Easy: three to five operations, as the shipped models have seen. Hard: six or seven, which neither
of them ever saw. Its student is sure of what it gets right, so that SCOPE's student weights have
nothing to do: the task is the control.
"""

from __future__ import annotations

import random

from tools.make_arithmetic import FEWEST_STEPS, MOST_STEPS, draw_problem
from tools.tasks.family import EASY, Problem, Task

HARD_STEPS = (6, 7)


def _draw(rng: random.Random, split: str) -> Problem:
    """A chain of the quickstart, or a longer one; its worked response is in the row."""
    return draw_problem(rng, *((FEWEST_STEPS, MOST_STEPS) if split == EASY else HARD_STEPS))


def _solve(row: Problem, rng: random.Random) -> str:
    """The one response there is."""
    return row["response"]


def _right(response: str, answer: str) -> bool:
    """The box holds the answer."""
    return response.endswith(f"\\boxed{{{answer}}}")


def _known(row: Problem) -> bool:
    """As long as the shipped teacher has seen."""
    return row["response"].count("=") <= MOST_STEPS


CHAINS = Task(
    name="chains",
    draw=_draw,
    solve=_solve,
    known=_known,
    right=_right,
    left_out=f"more than {MOST_STEPS} operations",
    verifier="",
    max_prompt_tokens=32,
    max_response_tokens=96,
)
