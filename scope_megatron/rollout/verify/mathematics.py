"""Mathematics: boxed answers compared by text where that decides, else by Math-Verify in children.

The children are of ``children``, what they run is ``worker``, the rules on text are in ``answer``.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from scope_megatron.rollout.verify.answer import (
    MAX_CHARACTERS,
    boxed_answers,
    equal_as_text,
    is_bomb,
    pairs_to_compare,
)
from scope_megatron.rollout.verify.children import GraderProcesses
from scope_megatron.types import Answer, Verdict, accepted

WORKER = Path(__file__).with_name("worker.py")


class MathVerifier:
    r"""Grades the boxed answer of each response against its reference answer.

    The answer is the last ``\boxed{...}``, or all the boxes of one closing statement together
    (``\boxed{1} and \boxed{2}`` says {1, 2}; see ``answer.boxed_answers``). A response is CORRECT
    if it equals any of the accepted answers. With ``require_boxed`` a response without a box is
    INCORRECT; otherwise Math-Verify looks for an answer in it. Only the last ``MAX_CHARACTERS``
    characters of a response count, and a reference answer longer than that equals nothing but its
    own text. A response the grader could not finish in ``timeout_s`` seconds (or a power too large
    to begin with) is TIMEOUT, one it died on CRASH. With ``algebra_only`` two equal texts prove
    nothing: both must be read as the same mathematics (a check of the grader and of reference
    answers, not for training).

    Children start when first needed and stay; ``close`` ends them. They end by themselves if this
    process dies, a busy one after at most ``timeout_s`` + 3 processor seconds.
    """

    def __init__(
        self,
        timeout_s: float = 5.0,
        workers: int = 1,
        require_boxed: bool = True,
        algebra_only: bool = False,
    ) -> None:
        self.require_boxed, self.algebra_only = require_boxed, algebra_only
        search_path = os.pathsep.join(p for p in sys.path if os.path.isabs(p))
        # Its environment holds no secret; the fixed hash seed makes verdicts reproducible.
        environment = {"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"}
        environment |= {k: os.environ[k] for k in ("LD_LIBRARY_PATH",) if k in os.environ}
        self.processes = GraderProcesses(
            [sys.executable, "-P", "-s", str(WORKER), search_path, str(timeout_s)],
            timeout_s,
            workers,
            environment,
            cannot_start="the math verifier cannot start ({reason}): is "
            f"math-verify[antlr4_13_2] installed for {sys.executable}?",
        )

    def __enter__(self) -> MathVerifier:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End the children. Grading again starts new ones."""
        self.processes.close()

    def grade(self, items: list[tuple[str, Answer]]) -> list[Verdict]:
        """One verdict per (response text, reference answer or accepted answers), in order.

        Raises RuntimeError when Math-Verify cannot be started at all.
        """
        decided = [self._by_text(response, answer) for response, answer in items]
        # Responses of a group often say the same: each question is asked once.
        asked: dict[str, dict[int, dict[str, Any]]] = {}
        for i, item in enumerate(decided):
            if isinstance(item, dict):
                asked.setdefault(repr(item), {})[i] = item
        requests = {min(same): same[min(same)] for same in asked.values()}
        verdicts = self.processes.grade(requests)
        for same in asked.values():
            for i in same:
                decided[i] = verdicts[min(same)]
        return [Verdict(v) for v in decided if isinstance(v, Verdict)]

    def _by_text(self, response: str, answer: Answer) -> Verdict | dict[str, Any]:
        """The verdict, or the request to a child where it needs algebra."""
        tail = response[-MAX_CHARACTERS:]
        found = boxed_answers(tail)
        if not found and self.require_boxed:
            return Verdict.INCORRECT
        ways: list[list[list[str]]] = []
        verdict = Verdict.INCORRECT
        for reference in accepted(answer):
            one = self._compare(found, tail, reference)
            if one is Verdict.CORRECT:
                return one
            if isinstance(one, Verdict):
                verdict = one if one is Verdict.TIMEOUT else verdict
            else:
                ways += one
        return {"ways": ways, "algebra_only": self.algebra_only} if ways else verdict

    def _compare(
        self, found: list[str], tail: str, reference: str
    ) -> Verdict | list[list[list[str]]]:
        """The verdict on one reference answer, or the ways in which algebra may find it equal."""
        gold = boxed_answers(reference) or [reference.strip()]
        said, meant = ", ".join(found) if found else tail, ", ".join(gold)
        equal = None if self.algebra_only else equal_as_text(said, meant)
        if equal is None and (not said.strip() or len(meant) > MAX_CHARACTERS):
            equal = False
        if equal is not None:
            return Verdict.CORRECT if equal else Verdict.INCORRECT
        if is_bomb(said) or is_bomb(meant):
            return Verdict.TIMEOUT
        if not found:
            return [[[tail, _boxed(meant)]]]
        return [[[_boxed(a), _boxed(b)] for a, b in way] for way in pairs_to_compare(found, gold)]


def _boxed(text: str) -> str:
    return f"\\boxed{{{text.strip().strip('$')}}}"
