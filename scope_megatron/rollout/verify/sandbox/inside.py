"""What runs in the sandbox. Started by its path with ``python -I -S``, never imported there.

It sets its limits, says it is ready with one byte, and reads one header: 8 bytes of length, then
JSON {"mode", "source", ...}. What follows depends on the mode:

script   the source runs as ``__main__``; the rest of standard input is the program's
calls    the source runs once; then each line is a question about its names, answered by a line
referee  runs tests that are trusted not to attack; it asks for every call of the program and
         writes each question on a line that starts with C. The last line starts with D.

Calls and referee are two processes: what a test expects never is where the program could look.
Values go between them as JSON with tags, so neither can make the other run code.
"""

from __future__ import annotations

import ast
import builtins
import json
import math
import os
import resource
import sys
import types
from typing import Any, NoReturn, TextIO

DEFINITIONS = (ast.FunctionDef, ast.ClassDef)


def main(limits: dict[str, int], packages: str) -> None:
    os.environ.clear()
    os.putenv("OPENBLAS_NUM_THREADS", "1")  # numpy's: a thread for each core would be too many
    sys.path.append(packages)
    for name, value in limits.items():
        resource.setrlimit(getattr(resource, name), (value, value))
    sys.set_int_max_str_digits(0)
    builtins.exit = builtins.quit = sys.exit  # type: ignore[assignment]  # as without -S
    os.write(1, b"R")
    header = json.loads(_read(int.from_bytes(_read(8), "big")))
    if header["mode"] == "script":
        script(header)
        return
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="surrogatepass")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # a print must not look like a reply
    questions = os.fdopen(os.dup(0), "r", encoding="utf-8", errors="surrogatepass")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    (calls if header["mode"] == "calls" else referee)(header, questions, replies)


def _read(size: int) -> bytes:
    """Exactly ``size`` bytes of standard input, and not one more: the rest is the program's."""
    data = b""
    while len(data) < size:
        part = os.read(0, size - len(data))
        if not part:
            os._exit(3)
        data += part
    return data


def script(header: dict[str, Any]) -> None:
    """The program as if python had been started with it."""
    module = types.ModuleType("__main__")
    module.__dict__["__builtins__"] = builtins
    sys.modules["__main__"] = module
    sys.argv = ["program.py"]
    exec(compile(header["source"], "program.py", "exec"), module.__dict__)


# ---------------------------------------------------------------- the program's functions


def calls(header: dict[str, Any], questions: TextIO, replies: TextIO) -> None:
    """Answer questions about the program's names until there are no more."""
    module = types.ModuleType("program")
    sys.modules["program"] = module
    try:
        exec(compile(header["source"], "program.py", "exec"), module.__dict__)
        failed = None
    except BaseException as error:
        failed = error
    kept: list[Any] = []
    for line in questions:
        try:
            if failed is not None:
                raise failed
            reply = answer(json.loads(line), module.__dict__, kept)
        except BaseException as error:
            reply = {"error": type(error).__name__, "message": str(error)[:1000]}
            reply |= {"broken": True} if failed is not None else {}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def answer(question: dict[str, Any], names: dict[str, Any], kept: list[Any]) -> dict[str, Any]:
    """The value a question asks for, and what became of its arguments."""
    on, what = question["on"], question["what"]
    target = kept[on] if isinstance(on, int) else _named(on, names)
    args = [decode(item, kept.__getitem__) for item in question["args"]]
    kwargs = {k: decode(item, kept.__getitem__) for k, item in question["kwargs"].items()}
    if what == "call":
        value = target(*args, **kwargs)
    elif what == "get":
        value = getattr(target, args[0])
    elif what == "set":
        setattr(target, args[0], args[1])
        value = None
    elif what == "list":
        value = list(target)
    else:
        value = str(target)

    def keep(item: Any) -> dict[str, Any]:
        kept.append(item)
        return {"object": len(kept) - 1}

    return {"value": encode(value, keep), "args": [encode(item, keep) for item in args]}


def _named(name: str, names: dict[str, Any]) -> Any:
    """A function of the program, or the method of its class Solution."""
    if name not in names and hasattr(names.get("Solution"), name):
        return getattr(names["Solution"](), name)
    return names[name]


def encode(value: Any, keep: Any) -> Any:
    """A value as JSON. What has no form there stays where it is; ``keep`` names it."""
    if value is None or isinstance(value, bool | str):
        return value if type(value) in (type(None), bool, str) else str(value)
    if isinstance(value, int | float):
        return int(value) if isinstance(value, int) else float(value)
    if isinstance(value, list):
        return [encode(item, keep) for item in value]
    if isinstance(value, tuple):
        return {"tuple": [encode(item, keep) for item in value]}
    if isinstance(value, set | frozenset):
        return {"set": [encode(item, keep) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[encode(k, keep), encode(v, keep)] for k, v in value.items()]}
    if isinstance(value, bytes | bytearray):
        return {"bytes": value.hex()}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    return keep(value)


def decode(item: Any, kept: Any) -> Any:
    """The value that ``encode`` wrote; ``kept`` finds what it left in place."""
    if isinstance(item, list):
        return [decode(part, kept) for part in item]
    if not isinstance(item, dict):
        return item
    ((tag, content),) = item.items()
    if tag == "tuple":
        return tuple(decode(part, kept) for part in content)
    if tag == "set":
        return {decode(part, kept) for part in content}
    if tag == "dict":
        return {decode(k, kept): decode(v, kept) for k, v in content}
    if tag == "bytes":
        return bytes.fromhex(content)
    if tag == "complex":
        return complex(*content)
    return kept(content)


# ---------------------------------------------------------------- the tests


class Unreadable(Exception):
    """The tests themselves are wrong."""


class Asker:
    """Puts questions about the program and waits for the reply."""

    def __init__(self, questions: TextIO, replies: TextIO) -> None:
        self.incoming, self.outgoing = questions, replies
        self.asked = False

    def ask(self, on: Any, what: str, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        question = {"on": on, "what": what, "args": [encode(a, self.name) for a in args]}
        question["kwargs"] = {k: encode(a, self.name) for k, a in (kwargs or {}).items()}
        self.outgoing.write("C" + json.dumps(question) + "\n")
        self.outgoing.flush()
        line = self.incoming.readline()
        if not line:
            os._exit(3)
        reply = json.loads(line)
        if reply.get("broken"):  # whatever the tests catch: there is no program
            self.end("failed")
        self.asked = True
        if "error" in reply:
            kind = getattr(builtins, str(reply["error"]), RuntimeError)
            known = isinstance(kind, type) and issubclass(kind, Exception)
            known = known and not issubclass(kind, StopIteration)  # it would end the tests' loops
            raise (kind if known else RuntimeError)(str(reply.get("message")))
        for mine, theirs in zip(args, reply["args"], strict=True):
            self.follow(mine, theirs)
        return decode(reply["value"], self.remote)

    def follow(self, mine: Any, theirs: Any) -> None:
        """A list, set or dict that the program changed in place changes here as well."""
        if isinstance(mine, list | set | dict):
            value = decode(theirs, self.remote)
            if type(value) is type(mine) and value != mine:
                mine.clear()
                mine.extend(value) if isinstance(mine, list) else mine.update(value)

    def end(self, verdict: str) -> NoReturn:
        self.outgoing.write("D" + json.dumps(verdict) + "\n")
        self.outgoing.flush()
        os._exit(0)

    def remote(self, number: int) -> Remote:
        return Remote(self, number)

    def name(self, value: Any) -> dict[str, Any]:
        if isinstance(value, Remote):
            return {"object": value._on}
        raise TypeError(f"a test passes a {type(value).__name__}, which cannot be sent")


class Remote:
    """Something that lives with the program: a function, a class, an object of its own kind."""

    def __init__(self, asker: Asker, on: Any) -> None:
        self.__dict__.update(_asker=asker, _on=on)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._asker.ask(self._on, "call", args, kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._asker.ask(self._on, "get", (name,))

    def __setattr__(self, name: str, value: Any) -> None:
        self._asker.ask(self._on, "set", (name, value))

    def __iter__(self) -> Any:
        return iter(self._asker.ask(self._on, "list"))

    def __str__(self) -> str:
        return str(self._asker.ask(self._on, "str"))


def referee(header: dict[str, Any], questions: TextIO, replies: TextIO) -> None:
    """Run the tests; the last line says whether all passed, or that they cannot be run."""
    asker = Asker(questions, replies)
    try:
        (returns if "inputs" in header else asserts)(header, asker)
        verdict = "passed"
    except Unreadable:
        verdict = "unreadable"
    except BaseException:  # a failed assertion, or whatever the program's value led to
        verdict = "failed"
    asker.end(verdict)


def returns(header: dict[str, Any], asker: Asker) -> None:
    """Each call returns what is expected."""
    function = Remote(asker, header["entry_point"])
    for args, expected in zip(header["inputs"], header["outputs"], strict=True):
        value = _plain(function(*args))
        expected = _plain(expected)
        # APPS wraps what a call returns in a list.
        wrapped = isinstance(expected, list) and len(expected) == 1 and value == expected[0]
        assert value == expected or wrapped or _close(value, expected)


def _plain(value: Any) -> Any:
    """Tuples as lists and keys as text, as JSON has them."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return value


def _close(value: Any, expected: Any) -> bool:
    if isinstance(expected, float) and isinstance(value, int | float):
        if not math.isfinite(expected):  # any number is close to infinity
            return value != value and expected != expected
        return abs(value - expected) <= 1e-6 * max(1.0, abs(expected))
    if isinstance(expected, list) and isinstance(value, list) and len(value) == len(expected):
        return all(a == b or _close(a, b) for a, b in zip(value, expected, strict=True))
    return False


def asserts(header: dict[str, Any], asker: Asker) -> None:
    """The tests' own code, in which every name it does not define itself is the program's."""
    try:
        parts = [header.get("setup", ""), *header["tests"]]
        trees = [ast.parse(part) for part in parts]
    except (SyntaxError, ValueError, TypeError):
        raise Unreadable from None
    checks = Checks(asker)
    module = sys.modules["__main__"] = types.ModuleType("__main__")
    names = module.__dict__
    names.update(__builtins__=builtins, __held__=checks.held, __caught__=checks.caught)
    entry = header.get("entry_point")
    defined = {"__name__", *dir(builtins)}
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, (*DEFINITIONS, ast.ExceptHandler)):
            defined.add(node.name or "")
        elif isinstance(node, ast.alias):
            defined.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.arg):
            defined.add(node.arg)
        elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            defined.add(node.id)
    named = {node.id for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Name)}
    for name in named - defined:
        names[name] = Remote(asker, name)
    sys.argv = ["tests.py"]
    for i, tree in enumerate(trees):
        code = compile(ast.fix_missing_locations(checks.visit(tree)), "tests.py", "exec")
        try:
            exec(code, names)
        except SystemExit as end:
            if end.code:
                raise
        if entry and i == 0:  # the setup may hold a stub of it
            names[entry] = Remote(asker, entry)
    own = [node for tree in trees[1:] for node in tree.body if isinstance(node, DEFINITIONS)]
    run_collected({node.name: names.get(node.name) for node in own if node.name not in named})
    if entry and callable(names.get("check")):
        names["check"](names[entry])
    if not (asker.asked and checks.count):
        raise Unreadable


def run_collected(names: dict[str, Any]) -> None:
    """What pytest and unittest would find among what the tests define and do not use."""
    unittest = sys.modules.get("unittest")
    for name, value in names.items():
        if isinstance(value, types.FunctionType) and name.startswith("test"):
            value()
        elif unittest and isinstance(value, type) and issubclass(value, unittest.TestCase):
            result = unittest.TestResult()
            unittest.defaultTestLoader.loadTestsFromTestCase(value).run(result)
            assert result.wasSuccessful()
        elif isinstance(value, type) and name.startswith("Test"):
            for method in [method for method in dir(value) if method.startswith("test")]:
                one = value()
                if prepare := getattr(one, "setup_method", None):
                    prepare(*[method] * (prepare.__code__.co_argcount - 1))
                getattr(one, method)()


class Checks(ast.NodeTransformer):
    """Test code made to note each check that could have failed: an assertion that held, a call of
    ``assert...`` that returned, a condition of a ``raise``, an exception that was expected."""

    def __init__(self, asker: Asker) -> None:
        self.asker, self.count = asker, 0

    def held(self, value: Any = None) -> Any:
        self.count += 1
        return value

    def caught(self) -> None:
        self.count += self.asker.asked and not isinstance(sys.exc_info()[1], AssertionError)

    def visit_Assert(self, node: ast.Assert) -> Any:
        return [self.generic_visit(node), ast.Expr(_call("__held__"))]

    def visit_If(self, node: ast.If) -> Any:
        decides = any(isinstance(n, ast.Raise) or _is_check(n) for n in ast.walk(node))
        self.generic_visit(node)
        node.test = _call("__held__", node.test) if decides else node.test
        return node

    def visit_Call(self, node: ast.Call) -> Any:
        check = _is_check(node)
        self.generic_visit(node)
        return _call("__held__", node) if check else node

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> Any:
        self.generic_visit(node)
        node.body.insert(0, ast.Expr(_call("__caught__")))
        return node


def _is_check(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call):
        return False
    name = getattr(node.func, "attr", getattr(node.func, "id", ""))
    return str(name).startswith("assert") or name in ("exit", "fail")


def _call(name: str, *args: ast.expr) -> ast.expr:
    return ast.Call(ast.Name(name, ast.Load()), [*args], [])


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), sys.argv[2])
