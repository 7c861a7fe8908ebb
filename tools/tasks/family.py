"""What a task is. Verifiers load it in processes of their own: the standard library only."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

Problem = dict[str, str]
LARGEST = 99  # every value on the way: 0..99, one token in the study's tokenizer
EASY, HARD = "easy", "hard"


@dataclass(frozen=True)
class Task:
    """A family of problems.

    ``draw`` makes one problem of a split (`easy`, `hard`) as a row of `prompt`, `answer` and
    `data_source`. ``solve`` gives a row a worked response: the habitual one, a roundabout one, or
    one that gives up, so that a student learns a habit, alternatives, and mistakes. ``right`` says
    whether a response is correct. ``known``: whether a row with a response is in the part that the
    teacher may see; its supervised rows are those that are known and right. ``glimpses``: the
    share of right rows outside of that part which it sees all the same. ``hard_share``: of hard
    problems among the training rows. Tasks of one ``family`` have the same problems and student.
    """

    name: str
    draw: Callable[[random.Random, str], Problem]
    solve: Callable[[Problem, random.Random], str]
    known: Callable[[Problem], bool]
    right: Callable[[str, str], bool]
    left_out: str  # the part that the teacher never saw, in words
    verifier: str  # module:function for verifier.custom; empty: the verifier is `exact`
    max_prompt_tokens: int
    max_response_tokens: int
    hard_share: float = 0.5
    glimpses: float = 0.0

    @property
    def family(self) -> str:
        """The name up to an underscore."""
        return self.name.partition("_")[0]
