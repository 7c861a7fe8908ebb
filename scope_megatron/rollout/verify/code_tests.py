"""The tests of a programming problem, as a row's answer has them.

The answer is JSON text, in this project's form (what ``tools/prepare_data.py`` writes) or as the
datasets publish it:

{"type": "stdin", "inputs": [text, ...], "outputs": [text, ...]}
{"type": "call", "entry_point": name, "inputs": [[argument, ...], ...], "outputs": [value, ...]}
{"type": "assert", "tests": [code, ...], "entry_point": name or none}

with "setup" (code before the program; in assert tests before the tests as well) where needed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class CodeTests:
    """``kind`` stdin, call or assert, with the fields that kind has."""

    kind: str
    inputs: tuple[Any, ...] = ()
    outputs: tuple[Any, ...] = ()
    tests: tuple[str, ...] = ()
    entry_point: str = ""
    setup: str = ""  # code before the program
    test_setup: str = ""  # code before the tests


def read_tests(answer: str) -> CodeTests:
    """Raises ValueError with the reason why there are no tests in ``answer``."""
    try:
        value = json.loads(answer)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the tests are not JSON ({error})") from None
    if isinstance(value, list):
        return _listed(value)
    if not isinstance(value, dict):
        raise ValueError("the tests are neither an object nor a list")
    if "inputs" in value or "outputs" in value:
        return _paired(value)
    if "test" in value or "test_list" in value or "tests" in value:
        return _asserted(value)
    raise ValueError("the tests have neither inputs and outputs nor test code")


def _paired(value: Mapping[str, Any]) -> CodeTests:
    """APPS, TACO, CodeContests, Codeforces, and this project's stdin and call."""
    inputs, outputs = value.get("inputs"), value.get("outputs")
    if not isinstance(inputs, list) or not isinstance(outputs, list) or not inputs:
        raise ValueError("inputs and outputs are not lists with at least one test")
    if len(inputs) != len(outputs):
        raise ValueError(f"there are {len(inputs)} inputs and {len(outputs)} outputs")
    name = value.get("fn_name") or value.get("entry_point") or ""
    setup = str(value.get("setup") or "")
    if name:
        arguments = tuple(tuple(_arguments(one)) for one in inputs)
        return CodeTests("call", arguments, tuple(outputs), entry_point=str(name), setup=setup)
    return CodeTests("stdin", tuple(map(_text, inputs)), tuple(map(_text, outputs)), setup=setup)


def _listed(value: list[Any]) -> CodeTests:
    """LiveCodeBench: {"input", "output", "testtype"} each; or a list of assert statements."""
    if value and all(isinstance(one, str) for one in value):
        return CodeTests("assert", tests=tuple(value))
    if not value or not all(isinstance(one, dict) and "output" in one for one in value):
        raise ValueError("the list holds neither tests with input and output nor assertions")
    if any(one.get("testtype") == "functional" for one in value):
        raise ValueError("functional tests need the name of the function: convert the rows first")
    return _paired({"inputs": [t.get("input", "") for t in value],
                    "outputs": [t["output"] for t in value]})  # fmt: skip


def _asserted(value: Mapping[str, Any]) -> CodeTests:
    """HumanEval (prompt, test, entry_point), MBPP (test_list, test_setup_code), this project's."""
    tests = value.get("tests") or value.get("test_list") or value.get("test")
    tests = [tests] if isinstance(tests, str) else tests
    if not isinstance(tests, list) or not all(isinstance(one, str) for one in tests):
        raise ValueError("the tests are not code")
    name, stub = str(value.get("entry_point") or ""), str(value.get("prompt") or "")
    imports = "\n".join(value.get("test_imports") or [])
    test_setup = stub or "\n".join((imports, str(value.get("test_setup_code") or "")))
    return CodeTests(
        "assert",
        tests=tuple(tests),
        entry_point=name,
        setup=str(value.get("setup") or "") or _before(stub, name),
        test_setup=str(value.get("test_setup") or "") or test_setup,
    )


def _before(stub: str, name: str) -> str:
    """The part of HumanEval's prompt before the function: imports, and helpers it may call."""
    return stub.partition(f"def {name}(")[0] if name else ""


def _text(value: Any) -> str:
    """A test's input or output as text; a list is its lines."""
    if isinstance(value, list):
        return "\n".join(map(str, value))
    return str(value)


def _arguments(value: Any) -> list[Any]:
    """A call's arguments; LiveCodeBench writes one JSON value a line."""
    if isinstance(value, str):
        return [json.loads(line) for line in value.splitlines() if line.strip()]
    return value if isinstance(value, list) else [value]
