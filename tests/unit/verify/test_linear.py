"""Grading by text takes time in proportion to the text, whatever a model or a data set writes.

It runs in the trainer's process: while it lasts, nothing else there does. Seconds here are of this
process's own processor time, so a busy machine changes nothing, and end what is not linear: with
the square of these lengths it takes minutes, with their cube years.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from scope_megatron.rollout import verify
from scope_megatron.rollout.verify import text
from scope_megatron.rollout.verify.answer import boxed_answers, equal_as_text
from scope_megatron.rollout.verify.mathematics import MathVerifier
from scope_megatron.rollout.verify.programs import program, same_output

LONG, LONGEST = 100_000, 1_000_000
GRADED = 40_000
REPEATED = [
    *" \t\n1,.{}()\\$-*_aA=/^`#'~é",
    *("- ", "$ ", "-$", "1,", "1 ", "1.", "1 / ", "1^", "1^1", "1^{1", "2**(", "x=", "x = ", "\\ "),
    *("answer ", "answer", "answer is ", "Answer: (", "is ", "####", "####\n", "the answer is\n"),
    *("\\boxed{1} ", "\\boxed{", "\\boxed{a", "\\boxed ", "\\fbox{}", "\\\\boxed{1}", "{}", "}{"),
    *("\\text{", "\\text{ ", "\\text{a} ", "\\frac{1}{", "\\frac12", "\\sqrt2", "\\left", "\\quad"),
    *("```", "```a ", "```a\n", "```\n```\n", " ```\n", "and ", "so1", "simplify", "(1, 2), "),
]
BEGUN = {  # what comes before the repeated
    **dict.fromkeys(("answer", "answer is", "option: \\text{", "(", "\\text{(", "$"), " (a"),
    **dict.fromkeys(("####", "the answer is", "the final answer is:"), " \n"),
    **dict.fromkeys(("```", "x\n```python", " \t```"), " \ta-\\"),
    **dict.fromkeys(("1", "-", "-$", "1,", "1.", "1/", "1 /", ".5", "2^{", "2**"), " 1,-$"),
    **dict.fromkeys(("\\boxed", "\\boxed{1", "\\text{1", "\\frac{1", "\\frac{1}{"), " 1{\\"),
    **dict.fromkeys(("x", "\\alpha", "f(", "simplif", "x_{"), " a1"),
}
TEXTS = [("", one) for one in REPEATED]
TEXTS += [(begun, one) for begun, several in BEGUN.items() for one in several]
LIMIT_S = 5.0
pytestmark = pytest.mark.slow

Texts = Iterator[str]


def written(length: int) -> Texts:
    for begun, one in TEXTS:
        yield begun + one * (length // len(one)) + "~"


@contextmanager
def processor_seconds(limit: float, what: object) -> Iterator[None]:
    """Ends what uses this process's processor for longer."""

    def end(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGVTALRM, end)
    signal.setitimer(signal.ITIMER_VIRTUAL, limit)
    try:
        yield
    except TimeoutError:
        pytest.fail(f"more than {limit:g} s of the processor: {what}", pytrace=False)
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)
        signal.signal(signal.SIGVTALRM, before)


def attributes() -> Iterator[tuple[object, str, str]]:
    """(module, name, attribute) of every ``name.attribute`` in the room."""
    for found in pkgutil.walk_packages(verify.__path__, f"{verify.__name__}."):
        module = importlib.import_module(found.name)
        for node in ast.walk(ast.parse(Path(module.__file__ or "").read_text("utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                yield module, node.value.id, node.attr


def uses() -> dict[str, tuple[re.Pattern[str], str]]:
    """Every regular expression of the room with every method that is called of it."""
    return {
        f"{module.__name__.rpartition('.')[2]}.{name}.{method}": (pattern, method)
        for module, name, method in attributes()
        if isinstance(pattern := getattr(module, name, None), re.Pattern)
    }


def test_every_regular_expression_is_found():
    """Those without a name would not be."""
    assert {"text._NUMBER.search", "programs._FENCE.findall"} < uses().keys()
    used = {attribute for _, name, attribute in attributes() if name == "re"}
    assert used <= {"compile", "Match", "DOTALL", "IGNORECASE", "MULTILINE"}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", uses())
def test_every_regular_expression_is_linear(name):
    pattern, method = uses()[name]
    for one in written(LONG):
        with processor_seconds(LIMIT_S, (name, one[:40])):
            found = pattern.sub("", one) if method == "sub" else getattr(pattern, method)(one)
            if method == "finditer":
                list(found)


def by_text(response: str, answer: str) -> object:
    return MathVerifier()._by_text(response, answer)


GRADERS: dict[str, Callable[[str, str], object]] = {
    "exact": text.exact,
    "choice": text.choice,
    "gsm8k": text.gsm8k,
    "string": text.string,
    "math": by_text,
    "equal_as_text": equal_as_text,
    "same_output": same_output,
    "program": lambda response, answer: program(response),
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", GRADERS)
def test_every_grader_is_linear(name):
    """In what is said, and in what is meant."""
    grader = GRADERS[name]
    for one in written(GRADED):
        with processor_seconds(LIMIT_S, (name, one[:40])):
            grader(f"{one}\n#### {one}", "42")
            grader(f"\\boxed{{{one}}}", "42")
            grader("The answer is \\boxed{42}", f"1{one}1")


NESTED = {
    "side by side": "\\boxed{1} " * (LONGEST // 10),
    "nested": "\\boxed{" * (LONGEST // 8) + "}" * (LONGEST // 8),
    "nested, each with a word": "\\boxed{a " * (LONGEST // 10) + "}" * (LONGEST // 10),
    "nested, each with two": "\\boxed{\\boxed{1}, " * (LONGEST // 19) + "}" * (LONGEST // 19),
    "never closed": "\\boxed{" * (LONGEST // 7),
    "doubled backslashes": "\\\\boxed{a" * (LONGEST // 10) + "}" * (LONGEST // 10),
}


@pytest.mark.parametrize("name", NESTED)
def test_a_million_characters_of_boxes(name):
    for grader in (text.string, text.gsm8k, by_text):
        with processor_seconds(20.0, (name, grader)):
            grader(NESTED[name], "42")
            grader("\\boxed{42}", NESTED[name])


def test_a_million_characters_of_white_space():
    for one in ("x" + " " * LONGEST + "y", "-" + " " * LONGEST, "$-" * (LONGEST // 2)):
        for grader in GRADERS.values():
            with processor_seconds(20.0, (one[:10], grader)):
                grader(f"The answer is {one}", "42")
                grader("The answer is 42", one)
    assert boxed_answers("\\boxed{a \\boxed{1} and \\boxed{2}}") == ["1", "2"]
