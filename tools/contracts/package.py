"""A package's sources: what its dotted names are, found by parsing alone."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Guard = Callable[[ast.expr], bool | None]  # the value of a condition where it is known

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Module:
    """A parsed file."""

    name: str
    tree: ast.Module
    is_package: bool

    def absolute(self, node: ast.ImportFrom) -> str:
        """The module that a (relative) import names."""
        if not node.level:
            return node.module or ""
        parts = self.name.split(".")
        keep = len(parts) - node.level + self.is_package
        return ".".join([*parts[:keep], *([node.module] if node.module else [])])


@dataclass(frozen=True)
class Definition:
    """What a name stands for. ``node`` is None for a module and for what another package has."""

    kind: str  # module, class, function, value or foreign
    name: str  # dotted, where it is defined
    node: ast.AST | None = None
    module: Module | None = None


def never(condition: ast.expr) -> bool | None:
    """The guard that knows nothing."""
    return None


@dataclass
class SourcePackage:
    """The sources below ``root``; ``name`` is the first part of their dotted names.

    ``guard`` evaluates conditions on versions, so that branches for others are passed over.
    """

    root: Path
    name: str
    guard: Guard = never
    members: dict[str, Any] = field(default_factory=dict)  # what members.py has found
    _modules: dict[str, Module | None] = field(default_factory=dict)
    _found: dict[str, list[Definition]] = field(default_factory=dict)

    def module(self, name: str) -> Module | None:
        """The module of this dotted name, or None. A folder without ``__init__`` counts."""
        if name not in self._modules:
            self._modules[name] = self._read(name)
        return self._modules[name]

    def _read(self, name: str) -> Module | None:
        base = self.root.joinpath(*name.split("."))
        for path, is_package in ((base / "__init__.py", True), (base.with_suffix(".py"), False)):
            if path.is_file():
                return Module(name, ast.parse(path.read_text(encoding="utf-8")), is_package)
        if base.is_dir():
            return Module(name, ast.parse(""), True)
        return None

    def find(self, name: str) -> list[Definition]:
        """Every definition of a dotted name (several where branches define it differently)."""
        if name not in self._found:
            self._found[name] = self._find(name, frozenset())
        return self._found[name]

    def _find(self, name: str, seen: frozenset[str]) -> list[Definition]:
        if name in seen:
            return []
        seen |= {name}
        if name.partition(".")[0] != self.name:
            return [Definition("foreign", name)]
        found: list[Definition] = []
        owner, _, last = name.rpartition(".")
        for above in self._owners(owner, seen) if owner else []:
            if above.kind == "module" and above.module is not None:
                found += self._in_module(above.module, last, seen)
            elif above.kind == "foreign":
                found.append(Definition("foreign", f"{above.name}.{last}"))
        module = self.module(name)
        if module is not None:  # beside a definition: ``from p.f import f`` hides the module p.f
            found.append(Definition("module", name, module.tree, module))
        return found

    def _owners(self, name: str, seen: frozenset[str]) -> list[Definition]:
        module = self.module(name) if name.partition(".")[0] == self.name else None
        if module is not None:
            return [Definition("module", name, module.tree, module)]
        return self._find(name, seen)

    def _in_module(self, module: Module, name: str, seen: frozenset[str]) -> list[Definition]:
        found: list[Definition] = []
        for statement in statements(module.tree.body, self.guard):
            found += self._defined(statement, module, name, seen)
        if not found:
            found = self._lazy(module, name, seen)
        real = [item for item in found if item.kind != "value"]
        return real or found

    def _defined(
        self, statement: ast.stmt, module: Module, name: str, seen: frozenset[str]
    ) -> list[Definition]:
        """What one top-level statement says of ``name``."""
        place = f"{module.name}.{name}"
        if isinstance(statement, Function) and statement.name == name:
            return [Definition("function", place, statement, module)]
        if isinstance(statement, ast.ClassDef) and statement.name == name:
            return [Definition("class", place, statement, module)]
        if isinstance(statement, ast.Import):
            for alias in statement.names:
                if (alias.asname or alias.name.partition(".")[0]) == name:
                    target = alias.name if alias.asname else name
                    return self._find(target, seen)
        if isinstance(statement, ast.ImportFrom):
            source = module.absolute(statement)
            for alias in statement.names:
                if (alias.asname or alias.name) == name:
                    return self._find(f"{source}.{alias.name}", seen)
                if alias.name == "*" and not name.startswith("_"):
                    starred = self._find(f"{source}.{name}", seen)
                    if any(item.kind != "foreign" for item in starred):
                        return starred
        for target, value in assignments(statement):
            if target == name:
                dotted = dotted_name(value) if value is not None else ""
                if dotted and dotted != name:
                    aliased = self._local(module, dotted, seen)
                    if aliased:
                        return aliased
                return [Definition("value", place, value, module)]
        return []

    def _local(self, module: Module, dotted: str, seen: frozenset[str]) -> list[Definition]:
        """A dotted name as written inside ``module``."""
        if f"{module.name}.{dotted}" in seen:
            return []
        return self._find(f"{module.name}.{dotted}", seen)

    def local(self, module: Module, dotted: str) -> list[Definition]:
        """The definitions of a dotted name that is written inside ``module``."""
        return self.find(f"{module.name}.{dotted}")

    def _lazy(self, module: Module, name: str, seen: frozenset[str]) -> list[Definition]:
        """A name of a table {"name": "module:attribute"} that the module's __getattr__ serves."""
        top = statements(module.tree.body, self.guard)
        if not any(isinstance(n, ast.FunctionDef) and n.name == "__getattr__" for n in top):
            return []
        for node in ast.walk(module.tree):
            if not isinstance(node, ast.Dict):
                continue
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == name:
                    target = value.value if isinstance(value, ast.Constant) else ""
                    path, _, attribute = str(target).partition(":")
                    path = f"{module.name}{path}" if path.startswith(".") else path
                    return self._find(f"{path}.{attribute or name}", seen)
        return []


def statements(body: list[ast.stmt], guard: Guard) -> Iterator[ast.stmt]:
    """The statements that run when a module is imported, those of branches included."""
    for statement in body:
        yield statement
        if isinstance(statement, ast.If):
            value = guard(statement.test)
            if value is not False:
                yield from statements(statement.body, guard)
            if value is not True:
                yield from statements(statement.orelse, guard)
        elif isinstance(statement, ast.Try):
            for part in (statement.body, statement.orelse, statement.finalbody):
                yield from statements(part, guard)
            for handler in statement.handlers:
                yield from statements(handler.body, guard)
        elif isinstance(statement, ast.With):
            yield from statements(statement.body, guard)


def assignments(statement: ast.stmt) -> Iterator[tuple[str, ast.expr | None]]:
    """(name, value) of every plain name that a statement assigns."""
    if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
        yield statement.target.id, statement.value
    if isinstance(statement, ast.Assign):
        for target in statement.targets:
            if isinstance(target, ast.Name):
                yield target.id, statement.value
            elif isinstance(target, ast.Tuple):
                yield from ((e.id, None) for e in target.elts if isinstance(e, ast.Name))


def dotted_name(node: ast.AST | None) -> str:
    """``a.b.c`` of an expression that is nothing but that, else the empty string."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        before = dotted_name(node.value)
        return f"{before}.{node.attr}" if before else ""
    return ""
