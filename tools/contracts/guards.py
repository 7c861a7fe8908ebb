"""megatron-core's conditions on the version of Transformer Engine, evaluated for one version."""

from __future__ import annotations

import ast

from packaging.version import Version

from tools.contracts.package import Guard, dotted_name


def te_guard(version: str) -> Guard:
    """What ``is_te_min_version("2.3.0")`` and ``HAVE_TE`` are when this version is installed."""
    installed = Version(version)

    def value(condition: ast.expr) -> bool | None:
        if isinstance(condition, ast.UnaryOp) and isinstance(condition.op, ast.Not):
            inner = value(condition.operand)
            return None if inner is None else not inner
        if isinstance(condition, ast.BoolOp):
            values = [value(part) for part in condition.values]
            decisive = isinstance(condition.op, ast.Or)
            if decisive in values:
                return decisive
            return None if None in values else not decisive
        name = dotted_name(condition).rpartition(".")[2]
        if name in ("HAVE_TE", "TYPE_CHECKING"):
            return name == "HAVE_TE"
        called = isinstance(condition, ast.Call) and dotted_name(condition.func)
        if called == "is_te_min_version" and isinstance(condition, ast.Call):
            return _reaches(installed, condition)
        return None

    return value


def _reaches(installed: Version, call: ast.Call) -> bool | None:
    if not call.args or not isinstance(call.args[0], ast.Constant):
        return None
    asked = Version(str(call.args[0].value))
    flags = {k.arg: k.value for k in call.keywords}
    equal = flags.get("check_equality")
    if isinstance(equal, ast.Constant) and equal.value is False:
        return installed > asked
    return installed >= asked
