"""What the names of a source stand for: imported things, and variables of imported classes."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field

from tools.contracts.members import annotated
from tools.contracts.package import Function, Guard, dotted_name, never


@dataclass(frozen=True)
class Ref:
    """A dotted name of a package, or (``instance``) an object of that class and a way from it."""

    target: str
    instance: bool = False
    path: tuple[str, ...] = ()

    def attribute(self, name: str) -> Ref:
        if self.instance:
            return Ref(self.target, True, (*self.path, name))
        return Ref(f"{self.target}.{name}")


@dataclass
class Scope:
    """Variables of a function, inside those of the functions and the class around it."""

    types: dict[str, Ref] = field(default_factory=dict)
    outer: Scope | None = None

    def find(self, name: str) -> Ref | None:
        """``name`` may be ``self.attribute``."""
        if name in self.types:
            return self.types[name]
        return self.outer.find(name) if self.outer is not None else None


def reachable(node: ast.AST, guard: Guard) -> Iterator[ast.AST]:
    """A tree's nodes without the branches that a guard rules out."""
    yield node
    children: list[ast.AST] = list(ast.iter_child_nodes(node))
    if isinstance(node, ast.If):
        value = guard(node.test)
        children = [node.test]
        children += [] if value is False else node.body
        children += [] if value is True else node.orelse
    for child in children:
        yield from reachable(child, guard)


def imports(tree: ast.AST, guard: Guard = never) -> dict[str, str]:
    """Local name -> dotted name, of every import of the file wherever it stands."""
    out: dict[str, str] = {}
    for node in reachable(tree, guard):
        if isinstance(node, ast.Import):
            for alias in node.names:
                name = alias.asname or alias.name.partition(".")[0]
                out[name] = alias.name if alias.asname else name
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                out[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return out


class Names:
    """The names of one file. ``roots`` are the packages that matter.

    ``returns`` says of this project's own functions (dotted) which class they give.
    """

    def __init__(
        self,
        tree: ast.AST,
        roots: tuple[str, ...],
        returns: dict[str, str],
        guard: Guard = never,
    ) -> None:
        self.imported = imports(tree, guard)
        self.roots = roots
        self.returns = returns

    def matters(self, dotted: str) -> bool:
        return any(dotted == root or dotted.startswith(f"{root}.") for root in self.roots)

    def dotted(self, name: str) -> str:
        """A name as written here -> the full one; what is not imported stays as it is."""
        first, _, rest = name.partition(".")
        full = self.imported.get(first, first)
        return f"{full}.{rest}" if rest else full

    def ref(self, node: ast.AST, scope: Scope) -> Ref | None:
        """What an expression stands for, as far as it is seen."""
        name = dotted_name(node)
        if name:
            return self._named(name, scope)
        if isinstance(node, ast.Attribute):
            before = self.ref(node.value, scope)
            return before.attribute(node.attr) if before is not None else None
        if isinstance(node, ast.Call):
            return self._called(node, scope)
        if isinstance(node, ast.Await | ast.NamedExpr):
            return self.ref(node.value, scope)
        return None

    def _named(self, name: str, scope: Scope) -> Ref | None:
        parts = name.split(".")
        for length in (2, 1):  # self.attribute before self
            known = scope.find(".".join(parts[:length]))
            if known is not None and len(parts) >= length:
                for part in parts[length:]:
                    known = known.attribute(part)
                return known
        if parts[0] in self.imported:
            full = self.dotted(name)
            return Ref(full) if self.matters(full) else None
        return None

    def _called(self, node: ast.Call, scope: Scope) -> Ref | None:
        """An object where a class of the packages is called, or an own function that gives one."""
        function = self.ref(node.func, scope)
        if function is not None and not function.instance:
            last = function.target.rpartition(".")[2]
            return Ref(function.target, True) if last.lstrip("_")[:1].isupper() else None
        given = self.returns.get(self.dotted(dotted_name(node.func)))
        return Ref(given, True) if given else None

    def annotation(self, node: ast.expr | None) -> Ref | None:
        """The packages' class that an annotation names, or None."""
        names = [self.dotted(name) for name in annotated(node)]
        known = [name for name in names if self.matters(name)]
        return Ref(known[0], True) if len(known) == 1 else None


def parameters(function: Function | ast.Lambda) -> Iterator[ast.arg]:
    """All of a function's parameters."""
    a = function.args
    yield from [*a.posonlyargs, *a.args, *a.kwonlyargs]
    yield from (p for p in (a.vararg, a.kwarg) if p is not None)


def function_scope(function: Function | ast.Lambda, names: Names, outer: Scope) -> Scope:
    """The typed variables of a function, told by annotations and by calls of classes."""
    scope = Scope(outer=outer)
    for parameter in parameters(function):
        ref = names.annotation(parameter.annotation)
        if ref is not None:
            scope.types[parameter.arg] = ref
    if isinstance(function, ast.Lambda):
        return scope
    assigned: dict[str, list[Ref | None]] = {}
    for node in own_nodes(function):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            assigned.setdefault(node.target.id, []).append(names.annotation(node.annotation))
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    value = names.ref(node.value, scope)
                    usable = value if value is not None and not value.path else None
                    assigned.setdefault(target.id, []).append(usable)
    for name, refs in assigned.items():
        if len(set(refs)) == 1 and refs[0] is not None:  # reassigned to something else: unknown
            scope.types[name] = refs[0]
        elif name in scope.types and None in refs:
            del scope.types[name]
    return scope


def class_scope(node: ast.ClassDef, names: Names, outer: Scope) -> Scope:
    """``self.x`` of a class, told by its annotations and by what its methods assign."""
    scope = Scope(outer=outer)
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            declared = names.annotation(statement.annotation)
            if declared is not None:
                scope.types[f"self.{statement.target.id}"] = declared
    for method in node.body:
        if not isinstance(method, Function):
            continue
        inner = function_scope(method, names, outer)
        for child in own_nodes(method):
            value: ast.expr | None = None
            ref: Ref | None = None
            targets: list[ast.expr] = []
            if isinstance(child, ast.Assign):
                targets, value = child.targets, child.value
            elif isinstance(child, ast.AnnAssign):
                targets, ref = [child.target], names.annotation(child.annotation)
            for target in targets:
                if dotted_name(target).count(".") == 1 and dotted_name(target)[:5] == "self.":
                    found = ref if value is None else names.ref(value, inner)
                    if found is not None and found.instance and not found.path:
                        scope.types.setdefault(dotted_name(target), found)
    return scope


def own_nodes(function: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a function without those of the functions inside it."""
    for child in ast.iter_child_nodes(function):
        yield child
        if not isinstance(child, Function | ast.Lambda | ast.ClassDef):
            yield from own_nodes(child)
