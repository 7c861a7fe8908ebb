"""Verifiers: which responses are correct. One registry, by the name in ``verifier.name``.

mathematics    grades many responses in child processes with a time limit each
worker         the child: math-verify on one response after the other
answer         the last boxed answer of a response, and comparison as text
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from scope_megatron.rollout.verify.mathematics import MathVerifier
from scope_megatron.types import Verdict

# Datasets whose answers are programs or test cases, by the start of a part of data_source. No
# verifier here can judge them; graded as mathematics every response would be wrong.
CODE_SOURCES = ("apps", "codecontests", "codeforces", "humaneval", "livecodebench", "mbpp", "taco")


class Verifier(Protocol):
    """Judges responses. Holds processes: use it as a context manager, or call ``close``."""

    def grade(self, items: list[tuple[str, str]]) -> list[Verdict]:
        """One verdict per (response text, reference answer), in the same order. A response that
        could not be judged is TIMEOUT or CRASH, and costs the others nothing."""
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Verifier: ...

    def __exit__(self, *exc: object) -> None: ...


VERIFIERS: dict[str, Callable[[float, int], Verifier]] = {
    "math": lambda timeout_s, workers: MathVerifier(timeout_s, workers)
}


def get_verifier(
    name: str, timeout_s: float = 5.0, workers: int = 1, sources: Iterable[str] = ()
) -> Verifier:
    """The verifier called ``name``; ``auto`` picks it by ``sources`` (Prompt.source of the data).

    Raises ValueError for an unknown name, and for data that ``auto`` finds no verifier for.
    """
    if name == "auto":
        name = ({verifier_for(s) for s in sources} or {"math"}).pop()
    if name not in VERIFIERS:
        raise ValueError(
            f"verifier.name: unknown verifier {name!r}; known: auto, {', '.join(VERIFIERS)}"
        )
    return VERIFIERS[name](timeout_s, workers)


def verifier_for(source: str) -> str:
    """Name of the verifier for a row's data_source: mathematics unless it is known to be code."""
    if any(part.startswith(CODE_SOURCES) for part in source.lower().split("/")):
        raise ValueError(
            f"verifier.name: auto has no verifier for data_source {source!r} (code); name one of "
            f"{', '.join(VERIFIERS)} to use it all the same"
        )
    return "math"
