"""The tests of a programming problem, as a row's answer has them.

The answer is JSON text, in this project's form (what ``tools/prepare_data.py`` writes) or as the
datasets publish it:

{"type": "stdin", "inputs": [text, ...], "outputs": [text, ...]}
{"type": "call", "entry_point": name, "inputs": [[argument, ...], ...], "outputs": [value, ...]}
{"type": "assert", "tests": [code, ...], "entry_point": name or none}

with "setup" (code before the program; in assert tests before the tests as well) where needed.

Tests that no program could fail are none: they would make every response correct.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

SANDBOX_PACKAGES = (
    "numpy",
)  # what programs and their tests may import besides the standard library
_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


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
    """Raises ValueError with the reason why there are no tests in ``answer``, and the fix."""
    value = _json(answer)
    if isinstance(value, list):
        return _listed(value)
    if not isinstance(value, dict):
        raise ValueError("the tests are neither an object nor a list")
    if "inputs" in value or "outputs" in value:
        return _paired(value)
    if "test" in value or "test_list" in value or "tests" in value:
        return _asserted(value)
    raise ValueError("the tests have neither inputs and outputs nor test code")


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the tests are not JSON ({error})") from None


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
    texts = tuple(map(_text, outputs))
    if not any(text.strip() for text in texts):
        raise ValueError("every expected output is empty, so printing nothing would be correct")
    return CodeTests("stdin", tuple(map(_text, inputs)), texts, setup=setup)


def _listed(value: list[Any]) -> CodeTests:
    """LiveCodeBench: {"input", "output", "testtype"} each; or a list of assert statements."""
    if value and all(isinstance(one, str) for one in value):
        return _that_can_fail(CodeTests("assert", tests=tuple(value)))
    if not value or not all(isinstance(one, dict) and "output" in one for one in value):
        raise ValueError("the list holds neither tests with input and output nor assertions")
    if any(one.get("testtype") == "functional" for one in value):
        raise ValueError("functional tests need the name of the function: convert the rows first")
    return _paired({"inputs": [t.get("input", "") for t in value],
                    "outputs": [t["output"] for t in value]})  # fmt: skip


def _asserted(value: Mapping[str, Any]) -> CodeTests:
    """HumanEval (prompt, test, entry_point), MBPP (test_list, test_setup_code), this project's."""
    tests = value.get("tests") or value.get("test_list") or value.get("test")
    tests, imports = _code([tests] if isinstance(tests, str) else tests), value.get("test_imports")
    name, stub = str(value.get("entry_point") or ""), str(value.get("prompt") or "")
    test_setup = stub or "\n".join((*_code(imports or []), str(value.get("test_setup_code") or "")))
    found = CodeTests(
        "assert",
        tests=tests,
        entry_point=name,
        setup=str(value.get("setup") or "") or _before(stub, name),
        test_setup=str(value.get("test_setup") or "") or test_setup,
    )
    return _that_can_fail(found)


def _code(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ValueError("the tests are not code")
    return tuple(value)


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
        return [_json(line) for line in value.splitlines() if line.strip()]
    return value if isinstance(value, list) else [value]


def _that_can_fail(tests: CodeTests) -> CodeTests:
    """Raises ValueError unless some program could fail this code, run as the sandbox runs it: the
    modules, then what pytest and unittest would find in the tests, then check(entry point)."""
    try:
        trees = [ast.parse(part) for part in (tests.test_setup, *tests.tests)]
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"the tests are not Python ({error})") from None
    statements = [statement for tree in trees for statement in tree.body]
    for name in filter(None, map(_foreign, statements)):
        raise ValueError(
            f"the tests import {name}, which the sandbox does not have; leave it out: a name that "
            "the tests do not define is the program's"
        )
    roots = [node for tree in trees[1:] for node in tree.body if _is_test(node)]
    if tests.entry_point:
        roots += [n for n in statements if isinstance(n, ast.FunctionDef) and n.name == "check"]
    run = list(_run(statements, roots))
    methods = [n for root in roots if isinstance(root, ast.ClassDef) for n in root.body]
    for node in (*roots, *filter(_is_test, methods)):
        if isinstance(node, ast.FunctionDef) and (needed := _needs(node, run, methods)):
            raise ValueError(
                f"{node.name} takes {needed}, and the sandbox has no pytest to give it one; let "
                "the tests call it"
            )
    if not any(map(_checks, run)):
        idle = [n for tree in trees for n in ast.walk(tree) if isinstance(n, _Definition)]
        names = [n.name for n in idle if n not in run and any(map(_checks, ast.walk(n)))]
        if names:
            raise ValueError(
                f"the tests never run {names[0]}; name it in a statement, or test_{names[0]}, or "
                "give entry_point where it is check(candidate)"
            )
        raise ValueError("the tests check nothing; write them as `assert f(1) == 2`")
    return tests


def _foreign(statement: ast.stmt) -> str | None:
    """A module that this statement imports and the sandbox lacks."""
    if isinstance(statement, ast.Import):
        modules = [alias.name for alias in statement.names]
    elif isinstance(statement, ast.ImportFrom):
        modules = ["." * statement.level + (statement.module or "")]
    else:
        return None
    known = (*sys.stdlib_module_names, *SANDBOX_PACKAGES)
    return next((name for name in modules if name.partition(".")[0] not in known), None)


def _run(statements: list[ast.stmt], roots: list[ast.stmt]) -> Iterator[ast.AST]:
    """Every node that runs: of these statements, of the roots among their definitions, and of the
    definitions that these name."""
    defined: dict[str, list[ast.AST]] = {}
    waiting: list[ast.AST] = [one for one in statements if not isinstance(one, _Definition)]
    waiting += roots
    for node in (node for statement in statements for node in ast.walk(statement)):
        if isinstance(node, _Definition) and node not in waiting:
            defined.setdefault(node.name, []).append(node)
    while waiting:
        node = waiting.pop()
        yield node
        inner = ast.iter_child_nodes(node)
        methods = isinstance(node, ast.ClassDef)
        waiting += [one for one in inner if methods or not isinstance(one, _Definition)]
        if isinstance(node, ast.Name | ast.Attribute):
            waiting += defined.pop(node.id if isinstance(node, ast.Name) else node.attr, [])


def _is_test(node: ast.AST) -> bool:
    """A function named test..., or a class of such that is named Test... or may be a TestCase."""
    if isinstance(node, ast.ClassDef):
        return any(map(_is_test, node.body)) and bool(node.bases or node.name.startswith("Test"))
    return isinstance(node, ast.FunctionDef) and node.name.startswith("test")


def _needs(function: ast.FunctionDef, run: list[ast.AST], methods: list[ast.stmt]) -> str:
    """The first argument of a test function that neither a default nor a caller gives."""
    if function.name == "check" or any(
        isinstance(n, ast.Name) and n.id == function.name for n in run
    ):
        return ""
    names = [one.arg for one in (*function.args.posonlyargs, *function.args.args)]
    names = names[: len(names) - len(function.args.defaults)]
    return next(iter(names[function in methods :]), "")


def _checks(node: ast.AST) -> bool:
    """Whether a program can fail here."""
    if isinstance(node, ast.Call):
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        return str(name).startswith("assert") or name in ("exit", "fail")
    return isinstance(node, ast.Assert | ast.Raise)
