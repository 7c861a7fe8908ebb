"""What a source uses of packages: names, attributes, calls with their keywords."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from tools.contracts.package import Function, Guard, dotted_name, never
from tools.contracts.scopes import Names, Ref, Scope, class_scope, function_scope

_GUARDS = ("ImportError", "ModuleNotFoundError", "AttributeError")


@dataclass(frozen=True)
class Call:
    """How something is called. ``partial``: more arguments come later, or are not seen."""

    positional: int = 0
    keywords: tuple[str, ...] = ()
    partial: bool = False


@dataclass(frozen=True)
class Use:
    """One use. With ``instance`` the attributes of ``path`` are looked up on an object."""

    target: str
    instance: bool = False
    path: tuple[str, ...] = ()
    call: Call | None = None
    where: str = ""  # file:line
    within: str = ""  # the function or class, by its dotted name in the file; "": at import
    optional: str = ""  # why the program goes on without it

    def __str__(self) -> str:
        name = ".".join([f"{self.target}()" if self.instance else self.target, *self.path])
        return name if self.call is None else f"{name}({', '.join(self.call.keywords)})"


def collect(
    files: Iterable[tuple[Path, str]],
    roots: tuple[str, ...],
    base: Path,
    guard: Guard = never,
    certain: bool = False,
) -> list[Use]:
    """The uses of packages in files, given with their dotted names. Sorted, each once per place.

    ``certain``: of the keywords that a ``**variable`` brings, only those that every setting brings.
    """
    files = list(files)
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path, _ in files}
    returns: dict[str, str] = {}
    added: set[str] = set()
    for path, module in files:
        names = Names(trees[path], roots, {})
        for node in trees[path].body:
            if isinstance(node, Function):
                ref = names.annotation(node.returns)
                if ref is not None:
                    returns[f"{module}.{node.name}"] = ref.target
        added |= set(_attributes_added(trees[path]))
    out: dict[Use, None] = {}
    for path, module in files:
        local = {k.removeprefix(f"{module}."): v for k, v in returns.items()}
        names = Names(trees[path], roots, returns | local, guard)
        place = path.relative_to(base) if path.is_relative_to(base) else path
        collector = _Collector(names, trees[path], str(place), added, guard)
        collector.certain = certain
        collector.visit(trees[path])
        out |= dict.fromkeys(collector.uses)
    return sorted(out, key=lambda use: (str(use), use.where))


def _attributes_added(tree: ast.AST) -> Iterator[str]:
    """Attributes that a source puts on objects other than self: its own, to be read later."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if dotted_name(node.value) != "self":
                yield node.attr
        if isinstance(node, ast.Call) and dotted_name(node.func) == "setattr":
            if len(node.args) > 1 and isinstance(node.args[1], ast.Constant):
                yield str(node.args[1].value)


class _Collector(ast.NodeVisitor):
    def __init__(
        self, names: Names, tree: ast.AST, place: str, added: set[str], guard: Guard
    ) -> None:
        self.names, self.place, self.added, self.guard = names, place, added, guard
        self.certain = False
        self.uses: list[Use] = []
        self._within: list[str] = []
        self._scope = Scope()
        self._optional = ""
        self._class: ast.ClassDef | None = None
        self._functions: list[ast.AST] = [tree]
        self._own = {n.name: n for n in ast.walk(tree) if isinstance(n, Function)}
        self._asked = set(_asked_first(tree))

    def _record(self, ref: Ref | None, node: ast.AST, call: Call | None = None) -> None:
        if ref is None or not self.names.matters(ref.target):
            return
        if ref.instance:
            known = [i for i, name in enumerate(ref.path) if name in self.added]
            if known:  # an attribute of this project's own: it and what follows are not theirs
                ref, call = replace(ref, path=ref.path[: known[0]]), None
            if not ref.path and call is None:
                return
        last = ref.path[-1] if ref.path else ref.target.rpartition(".")[2]
        optional = self._optional or ("asked for first" if last in self._asked else "")
        where = f"{self.place}:{getattr(node, 'lineno', 0)}"
        within = ".".join(self._within)
        self.uses.append(Use(ref.target, ref.instance, ref.path, call, where, within, optional))

    # scopes -----------------------------------------------------------------------------------

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for outside in [*node.bases, *node.decorator_list, *[k.value for k in node.keywords]]:
            self.visit(outside)
        before = self._scope, self._class
        self._scope, self._class = class_scope(node, self.names, self._scope), node
        self._within.append(node.name)
        self._base_types(node)
        for child in node.body:
            self.visit(child)
        self._within.pop()
        self._scope, self._class = before

    def _base_types(self, node: ast.ClassDef) -> None:
        """``self`` is an object of the package's base; what the class defines is its own."""
        base = self._base(node)
        if base is None:
            return
        own = {n.name for n in node.body if isinstance(n, Function)}
        own |= {dotted_name(t) for n in node.body if isinstance(n, ast.Assign) for t in n.targets}
        own |= {dotted_name(n.target) for n in node.body if isinstance(n, ast.AnnAssign)}
        for child in ast.walk(node):
            if isinstance(child, ast.Attribute) and isinstance(child.ctx, ast.Store):
                own.add(child.attr)
        for child in ast.walk(node):
            if isinstance(child, ast.Attribute) and dotted_name(child.value) == "self":
                if child.attr not in own:
                    self._scope.types.setdefault(
                        f"self.{child.attr}", Ref(base, True, (child.attr,))
                    )

    def _base(self, node: ast.ClassDef | None) -> str | None:
        for base in node.bases if node is not None else []:
            base = base.body if isinstance(base, ast.IfExp) else base
            ref = self.names.ref(base, Scope())
            if ref is not None:
                return ref.target
        return None

    def visit_FunctionDef(self, node: Function | ast.Lambda) -> None:
        if isinstance(node, Function):
            for outside in [*node.decorator_list, node.returns, *node.args.defaults]:
                if outside is not None:
                    self.visit(outside)
            for parameter in [*node.args.args, *node.args.kwonlyargs]:
                if parameter.annotation is not None:
                    self.visit(parameter.annotation)
        before = self._scope
        self._scope = function_scope(node, self.names, before)
        self._functions.append(node)
        self._within.append(getattr(node, "name", "<lambda>"))
        for child in node.body if isinstance(node.body, list) else [node.body]:
            self.visit(child)
        self._within.pop()
        self._functions.pop()
        self._scope = before

    visit_AsyncFunctionDef = visit_FunctionDef
    visit_Lambda = visit_FunctionDef

    # branches ---------------------------------------------------------------------------------

    def visit_Try(self, node: ast.Try) -> None:
        caught = [_exceptions(handler) for handler in node.handlers]
        before = self._optional
        if any(name in _GUARDS for names in caught for name in names):
            self._optional = before or "guarded by except"
        for child in node.body:
            self.visit(child)
        self._optional = before
        for outside in [*node.handlers, *node.orelse, *node.finalbody]:
            self.visit(outside)

    def visit_If(self, node: ast.If) -> None:
        value = self.guard(node.test)
        self.visit(node.test)
        if value is not False:
            before = self._scope
            self._scope = self._narrowed(node.test)
            for child in node.body:
                self.visit(child)
            self._scope = before
        if value is not True:
            for child in node.orelse:
                self.visit(child)

    def _narrowed(self, test: ast.expr) -> Scope:
        """Within ``if isinstance(x, T)``, x is of class T."""
        scope = Scope(outer=self._scope)
        if isinstance(test, ast.Call) and dotted_name(test.func) == "isinstance":
            kind = self.names.ref(test.args[1], self._scope)
            if kind is not None and not kind.instance and dotted_name(test.args[0]):
                scope.types[dotted_name(test.args[0])] = Ref(kind.target, True)
        return scope

    # uses -------------------------------------------------------------------------------------

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._record(Ref(alias.name), node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if not node.level:
            for alias in node.names:
                self._record(Ref(f"{node.module}.{alias.name}"), node)

    def visit_Constant(self, node: ast.Constant) -> None:
        text = node.value
        if isinstance(text, str) and "." in text and self.names.matters(text):
            if all(part.isidentifier() for part in text.split(".")):
                self._record(Ref(text), node)  # a module that is imported by name
        if isinstance(text, str) and text.startswith("VLLM_") and text.isidentifier():
            self._record(Ref(f"vllm.envs.{text}"), node)  # a variable of its environment

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Store):
            return
        self._record(self.names.ref(node, self._scope), node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        ref = self.names.ref(node, self._scope)
        if ref is not None and isinstance(node.ctx, ast.Store) and ref.instance:
            ref = None  # an attribute given to an object
        self._record(ref, node)
        if ref is None or not dotted_name(node):
            self.visit(node.value)

    def visit_Call(self, node: ast.Call) -> None:
        self._record(self._callee(node), node, self._call(node))
        name = dotted_name(node.func)
        if name in ("getattr", "hasattr") and len(node.args) > 1:
            owner, attribute = self.names.ref(node.args[0], self._scope), node.args[1]
            if owner is not None and isinstance(attribute, ast.Constant):
                self._record(owner.attribute(str(attribute.value)), node)
        if name.rpartition(".")[2] == "partial" and node.args:
            ref = self.names.ref(node.args[0], self._scope)
            call = self._call(node)
            self._record(ref, node, replace(call, positional=call.positional - 1, partial=True))
        if self._callee(node) is None or not dotted_name(node.func):
            self.visit(node.func)
        for child in [*node.args, *[k.value for k in node.keywords]]:
            self.visit(child)

    def _callee(self, node: ast.Call) -> Ref | None:
        function = node.func
        if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Call):
            if dotted_name(function.value.func) == "super":
                base = self._base(self._class)
                if base is None:
                    return None
                if function.attr == "__init__":
                    return Ref(base)
                return Ref(base, True, (function.attr,))
        ref = self.names.ref(function, self._scope)
        return None if ref is not None and ref.instance and not ref.path else ref

    def _call(self, node: ast.Call) -> Call:
        keywords = [k.arg for k in node.keywords if k.arg is not None]
        partial = any(isinstance(a, ast.Starred) for a in node.args)
        for keyword in node.keywords:
            if keyword.arg is None:
                keys = self._keys(keyword.value)
                partial |= keys is None
                keywords += keys or []
        return Call(len(node.args), tuple(dict.fromkeys(keywords)), partial)

    def _keys(self, node: ast.expr) -> list[str] | None:
        """The string keys of ``**node``: a variable of this function, or an own function's."""
        if isinstance(node, ast.Dict):
            return _string_keys(node)
        name = dotted_name(node)
        if name:
            return self._keys_of_variable(name)
        if isinstance(node, ast.Call) and dotted_name(node.func) in self._own:
            function = self._own[dotted_name(node.func)]
            found: list[str] = []
            for child in self._reachable(function):
                if isinstance(child, ast.Return) and child.value is not None:
                    found += self._returned(child.value, function)
            return found
        return None

    def _returned(self, value: ast.expr, function: ast.AST) -> list[str]:
        if isinstance(value, ast.Dict):
            return _string_keys(value)
        if isinstance(value, ast.BinOp):
            return [*self._returned(value.left, function), *self._returned(value.right, function)]
        if isinstance(value, ast.IfExp):
            return [*self._returned(value.body, function), *self._returned(value.orelse, function)]
        self._functions.append(function)
        keys = self._keys_of_variable(dotted_name(value)) if dotted_name(value) else None
        self._functions.pop()
        return keys or []

    def _keys_of_variable(self, name: str) -> list[str] | None:
        found: list[str] | None = None
        for child in self._reachable(self._functions[-1]):
            targets = child.targets if isinstance(child, ast.Assign) else []
            if isinstance(child, ast.AnnAssign):
                targets = [child.target]
            for target in targets:
                if dotted_name(target) == name:
                    value = getattr(child, "value", None)
                    found = (found or []) + (self._keys(value) or [] if value else [])
                elif isinstance(target, ast.Subscript) and dotted_name(target.value) == name:
                    if isinstance(target.slice, ast.Constant):
                        found = [*(found or []), str(target.slice.value)]
        return found

    def _reachable(self, function: ast.AST) -> Iterator[ast.AST]:
        """The nodes of a function without branches for other versions."""
        for child in ast.iter_child_nodes(function):
            yield from self._reachable_from(child)

    def _reachable_from(self, node: ast.AST) -> Iterator[ast.AST]:
        if isinstance(node, Function | ast.Lambda | ast.ClassDef):
            return
        yield node
        if isinstance(node, ast.If):
            value = self.guard(node.test)
            if value is None and self.certain:
                return
            parts = ([] if value is False else node.body) + ([] if value is True else node.orelse)
            for part in parts:
                yield from self._reachable_from(part)
            return
        for child in ast.iter_child_nodes(node):
            yield from self._reachable_from(child)


def _string_keys(node: ast.Dict) -> list[str]:
    return [str(key.value) for key in node.keys if isinstance(key, ast.Constant)]


def _exceptions(handler: ast.ExceptHandler) -> list[str]:
    if handler.type is None:
        return []
    nodes = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return [dotted_name(node).rpartition(".")[2] for node in nodes]


def _asked_first(tree: ast.AST) -> Iterator[str]:
    """Names that hasattr, or getattr with a default, asks for: absent, the program goes on."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and len(node.args) > 1:
            name, attribute = dotted_name(node.func), node.args[1]
            default = name == "hasattr" or (name == "getattr" and len(node.args) > 2)
            if default and isinstance(attribute, ast.Constant):
                yield str(attribute.value)
