"""A use against a package's sources: there, missing, or not to be decided by reading."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass

from tools.contracts.members import UNKNOWN, Signature, constructors, members, signature
from tools.contracts.package import Definition, Function, SourcePackage, dotted_name
from tools.contracts.uses import Call, Use


@dataclass(frozen=True)
class Ruling:
    """``reason`` says what is missing; ``decided`` is False where sources do not show it."""

    use: Use
    reason: str = ""
    decided: bool = True

    @property
    def missing(self) -> bool:
        return bool(self.reason)


def judge(use: Use, package: SourcePackage, forwards: Mapping[str, str]) -> Ruling:
    """``forwards``: class -> the class that takes the keywords it passes on as ``**kwargs``."""
    if use.instance:
        return _judge_path(use, package, package.find(use.target), use.path, forwards)
    found = package.find(use.target)
    if found:
        return _judge_call(use, package, found, forwards)
    owner, _, last = use.target.rpartition(".")
    classes = [item for item in package.find(owner) if item.kind == "class"] if owner else []
    if classes:
        return _judge_path(use, package, classes, (last,), forwards)
    return Ruling(use, f"no {use.target}")


def _judge_path(
    use: Use,
    package: SourcePackage,
    classes: list[Definition],
    path: tuple[str, ...],
    forwards: Mapping[str, str],
) -> Ruling:
    """Attributes one after the other, from the classes that an object may be of."""
    if not classes:
        return Ruling(use, f"no {use.target}")
    owner = use.target if use.instance else use.target.rpartition(".")[0]
    for place, name in enumerate(path):
        classes = [item for item in classes if item.kind == "class"]
        known = [members(package, item) for item in classes]
        having = [k for k in known if name in k]
        if not known and place:
            return Ruling(use)  # of a class of another package
        if not having:
            if not known or any(k.open for k in known):
                return Ruling(use, decided=False)
            return Ruling(use, f"{owner} has no {name}")
        owner = f"{owner}.{name}"
        if place == len(path) - 1:
            functions = [f for k in having for f in k.methods.get(name, [])]
            if use.call is None or any(_is_property(f) for f in functions):
                return Ruling(use)
            if not functions:  # a callable that it was given, or another package's method
                return Ruling(use)
            signatures = [signature(f, bound=use.instance or _is_classmethod(f)) for f in functions]
            return _fits(use, owner, signatures, use.call, package, forwards)
        types = [t for k in having for t in k.types.get(name, [])]
        if UNKNOWN in types:
            return Ruling(use)
        classes = [item for t in types for item in package.find(t)]
    return Ruling(use)


def _judge_call(
    use: Use, package: SourcePackage, found: list[Definition], forwards: Mapping[str, str]
) -> Ruling:
    if use.call is None:
        return Ruling(use)
    signatures: list[Signature] = []
    for item in found:
        if item.kind == "class":
            signatures += constructors(package, item)
        elif isinstance(item.node, Function):
            signatures.append(signature(item.node, bound=False))
    names = [use.target, *(item.name for item in found)]
    into = next((forwards[name] for name in names if name in forwards), None)
    return _fits(use, use.target, signatures, use.call, package, {"": into} if into else {})


def _fits(
    use: Use,
    name: str,
    signatures: list[Signature],
    call: Call,
    package: SourcePackage,
    forwards: Mapping[str, str],
) -> Ruling:
    """Whether one of the signatures takes the call."""
    if not signatures:
        return Ruling(use, decided=False)
    into = forwards.get("") or forwards.get(name)
    reasons = [_misfit(s, call, package, into) for s in signatures]
    if "" in reasons:
        passed = signatures[reasons.index("")]
        hidden = passed.any_keyword and not into and set(call.keywords) - passed.keywords
        return Ruling(use, decided=not hidden)
    return Ruling(use, f"{name}: {reasons[0]}")


def _misfit(taken: Signature, call: Call, package: SourcePackage, into: str | None) -> str:
    """Why the call does not fit, or the empty string."""
    if call.positional > len(taken.positional) and not taken.any_positional:
        return f"takes {len(taken.positional)} positional arguments, {call.positional} given"
    unknown = [k for k in call.keywords if k not in taken.keywords]
    if unknown and into:
        fields = _keywords_of(into, package)
        unknown = [k for k in unknown if k not in fields]
        if unknown:
            return f"no keyword {', '.join(unknown)} (nor in {into})"
    if unknown and not taken.any_keyword:
        return f"no keyword {', '.join(unknown)}"
    given = {*taken.positional[: call.positional], *call.keywords}
    absent = sorted(taken.required - given)
    if absent and not call.partial:
        return f"asks for {', '.join(absent)}"
    return ""


def _keywords_of(name: str, package: SourcePackage) -> set[str]:
    """The keywords of a class or a method: of the package's sources, or of an installed package."""
    if name.partition(".")[0] == package.name:
        owner, _, method = name.rpartition(".")
        classes = package.find(owner)
        functions = [f for c in classes for f in members(package, c).methods.get(method, [])]
        signatures = [signature(f, bound=True) for f in functions]
        signatures += [s for d in package.find(name) for s in constructors(package, d)]
        return {keyword for taken in signatures for keyword in taken.keywords}
    module, _, last = name.rpartition(".")
    return {*inspect.signature(getattr(importlib.import_module(module), last)).parameters}


def _is_property(function: Function) -> bool:
    return any("property" in dotted_name(d).rpartition(".")[2] for d in function.decorator_list)


def _is_classmethod(function: Function) -> bool:
    return any(dotted_name(d) == "classmethod" for d in function.decorator_list)


def mentions(package: SourcePackage, module: str, word: str) -> bool:
    """Whether a module's code has this attribute, name or string."""
    found = package.module(module)
    for node in ast.walk(found.tree) if found is not None else []:
        if word in (
            getattr(node, "attr", None),
            getattr(node, "id", None),
            getattr(node, "value", None) if isinstance(node, ast.Constant) else None,
        ):
            return True
    return False
