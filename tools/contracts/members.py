"""A class's members over its bases: methods, fields, attributes set on self, the constructor."""

from __future__ import annotations

import ast
import importlib
from dataclasses import dataclass, field

from tools.contracts.package import (
    Definition,
    Function,
    SourcePackage,
    assignments,
    dotted_name,
    statements,
)

UNKNOWN = ""  # among an attribute's types: one that is not a class of the package
_FORWARD = ("Optional", "ClassVar", "Final", "Annotated", "Type", "type")
_STRUCTURES = ("Struct", "BaseModel", "NamedTuple", "TypedDict")
_OBJECT = ("object", "Generic", "Protocol", "ABC")


@dataclass
class Members:
    """What a class is known to have."""

    methods: dict[str, list[Function]] = field(default_factory=dict)
    types: dict[str, list[str]] = field(default_factory=dict)  # attribute -> its classes, UNKNOWN
    fields: dict[str, bool] = field(default_factory=dict)  # annotated, in order; has a default
    inherited: set[str] = field(default_factory=set)  # from other packages' bases
    open: bool = False  # some base could not be found, or __getattr__ serves more names

    def __contains__(self, name: str) -> bool:
        known = (self.methods, self.types, self.fields, self.inherited)
        return any(name in table for table in known)


def members(package: SourcePackage, definition: Definition) -> Members:
    """The members of a class; bases come after the class itself, as Python looks them up."""
    if definition.name not in package.members:
        out = Members()
        _add(package, definition, out, set())
        package.members[definition.name] = out
    found: Members = package.members[definition.name]
    return found


def _add(package: SourcePackage, definition: Definition, out: Members, seen: set[str]) -> None:
    node, module = definition.node, definition.module
    if definition.name in seen or not isinstance(node, ast.ClassDef) or module is None:
        return
    seen.add(definition.name)
    own: dict[str, list[Function]] = {}
    for statement in statements(node.body, package.guard):
        if isinstance(statement, Function):
            own.setdefault(statement.name, []).append(statement)
            _set_on_self(package, definition, statement, out)
            if any("property" in dotted_name(d) for d in statement.decorator_list):
                _add_types(package, definition, statement.name, statement.returns, out)
        elif isinstance(statement, ast.ClassDef):
            out.types.setdefault(statement.name, [])
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            name = statement.target.id
            out.fields.setdefault(name, statement.value is not None)
            _add_types(package, definition, name, statement.annotation, out)
        else:
            for name, _ in assignments(statement):
                out.types.setdefault(name, [])
    for name, functions in own.items():
        out.methods.setdefault(name, functions)
    out.open |= "__getattr__" in own
    for base in node.bases:
        _add_base(package, definition, base, out, seen)


def _add_base(
    package: SourcePackage, definition: Definition, base: ast.expr, out: Members, seen: set[str]
) -> None:
    if isinstance(base, ast.IfExp):  # class X(a.B if HAVE_A else object)
        base = base.body
    if isinstance(base, ast.Subscript):
        base = base.value
    name = dotted_name(base)
    assert definition.module is not None
    found = package.local(definition.module, name) if name else []
    if name in _OBJECT or name.rpartition(".")[2] in _OBJECT:
        return
    if not found:
        found = [Definition("foreign", f"builtins.{name}")]
    for item in found:
        if item.kind == "class":
            _add(package, item, out, seen)
        elif item.kind == "foreign" and item.name.partition(".")[0] != package.name:
            names = _names_of(item.name)
            out.inherited |= names
            out.open |= not names
        else:
            out.open = True


def _names_of(dotted: str) -> set[str]:
    """The attributes of a class of an installed package, or nothing where it does not import."""
    module, _, name = dotted.rpartition(".")
    try:
        value = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        return set()
    return {*dir(value), *(getattr(value, "__annotations__", None) or {})}


def _set_on_self(
    package: SourcePackage, definition: Definition, function: Function, out: Members
) -> None:
    """Attributes that a method assigns to its first argument."""
    arguments = [*function.args.posonlyargs, *function.args.args]
    if not arguments:
        return
    own, annotations = arguments[0].arg, {a.arg: a.annotation for a in arguments}
    annotations |= {a.arg: a.annotation for a in function.args.kwonlyargs}
    for node in ast.walk(function):
        targets: list[ast.expr] = []
        value: ast.expr | None = None
        if isinstance(node, ast.Assign):
            targets, value = node.targets, node.value
        elif isinstance(node, ast.AnnAssign | ast.AugAssign):
            targets, value = [node.target], node.value
        flat = [e for t in targets for e in (t.elts if isinstance(t, ast.Tuple) else [t])]
        for target in flat:
            is_own = isinstance(target, ast.Attribute) and dotted_name(target.value) == own
            if not is_own or not isinstance(target, ast.Attribute):
                continue
            out.types.setdefault(target.attr, [])
            if isinstance(node, ast.AnnAssign):
                _add_types(package, definition, target.attr, node.annotation, out)
            elif isinstance(value, ast.Name) and annotations.get(value.id) is not None:
                _add_types(package, definition, target.attr, annotations[value.id], out)
            elif isinstance(value, ast.Call):
                _add_types(package, definition, target.attr, value.func, out)
            elif getattr(value, "value", value) is not None:  # anything but None
                out.types[target.attr].append(UNKNOWN)


def _add_types(
    package: SourcePackage, definition: Definition, name: str, node: ast.expr | None, out: Members
) -> None:
    known = out.types.setdefault(name, [])
    for dotted in annotated(node):
        found = package.local(definition.module, dotted) if definition.module else []
        for item in found or [Definition("foreign", dotted)]:
            name = item.name if item.kind == "class" else UNKNOWN
            if name not in known:
                known.append(name)


def annotated(node: ast.expr | None) -> list[str]:
    """Names of the classes of an annotation: of ``A | None`` and ``Optional[A]``, A."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        try:
            return annotated(ast.parse(node.value, mode="eval").body)
        except SyntaxError:
            return []
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return [*annotated(node.left), *annotated(node.right)]
    if isinstance(node, ast.Subscript):
        outer = dotted_name(node.value).rpartition(".")[2]
        inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        if outer == "Union":
            return [name for element in inner for name in annotated(element)]
        return annotated(inner[0]) if outer in _FORWARD else []
    name = dotted_name(node)
    return [name] if name else []


@dataclass(frozen=True)
class Signature:
    """Parameters of a call, without the bound first one."""

    positional: tuple[str, ...]
    keywords: frozenset[str]
    required: frozenset[str]
    any_positional: bool
    any_keyword: bool


def signature(function: Function, bound: bool) -> Signature:
    """The parameters of a function as its caller sees them."""
    arguments = function.args
    decorators = {dotted_name(d) for d in function.decorator_list}
    first = int(bound and "staticmethod" not in decorators)
    positional = [a.arg for a in [*arguments.posonlyargs, *arguments.args]]
    without = positional[: len(positional) - len(arguments.defaults)]
    required = set(without[first:])
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        if default is None:
            required.add(argument.arg)
    keywords = {a.arg for a in [*arguments.args, *arguments.kwonlyargs]}
    if first:
        keywords -= {positional[0]} if positional else set()
    return Signature(
        tuple(positional[first:]),
        frozenset(keywords),
        frozenset(required),
        arguments.vararg is not None,
        arguments.kwarg is not None,
    )


def constructors(package: SourcePackage, definition: Definition) -> list[Signature]:
    """What the class may be called with; empty where nothing is known."""
    known = members(package, definition)
    structure = _is_structure(package, definition)
    if "__init__" in known.methods:
        return [signature(f, bound=True) for f in known.methods["__init__"]]
    if not structure and (known.open or known.inherited):
        return []
    names = _fields_in_order(package, definition)
    required = frozenset(n for n, default in names.items() if not default)
    return [Signature(tuple(names), frozenset(names), required, False, False)]


def _is_structure(package: SourcePackage, definition: Definition) -> bool:
    """Whether annotated names of the class are its constructor's parameters."""
    node, module = definition.node, definition.module
    if not isinstance(node, ast.ClassDef) or module is None:
        return False
    if any(dotted_name(getattr(d, "func", d)).endswith("dataclass") for d in node.decorator_list):
        return True
    bases = [dotted_name(base) for base in node.bases]
    if any(name.rpartition(".")[2] in _STRUCTURES for name in bases):
        return True
    found = [item for name in bases if name for item in package.local(module, name)]
    return any(_is_structure(package, item) for item in found if item.kind == "class")


def _fields_in_order(package: SourcePackage, definition: Definition) -> dict[str, bool]:
    """Fields of a dataclass: the bases' first, redefined ones keep their place."""
    node, module = definition.node, definition.module
    if not isinstance(node, ast.ClassDef) or module is None:
        return {}
    out: dict[str, bool] = {}
    for base in reversed(node.bases):
        for item in package.local(module, dotted_name(base)) if dotted_name(base) else []:
            if item.kind == "class":
                out |= _fields_in_order(package, item)
    if not _is_structure(package, definition):
        return out
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            outer = getattr(statement.annotation, "value", statement.annotation)
            if not dotted_name(outer).endswith("ClassVar"):
                out[statement.target.id] = _has_default(statement.value)
    return out


def _has_default(value: ast.expr | None) -> bool:
    """``field(init=...)`` without a default has none."""
    if isinstance(value, ast.Call) and dotted_name(value.func).endswith("field"):
        return any(k.arg in ("default", "default_factory") for k in value.keywords)
    return value is not None
