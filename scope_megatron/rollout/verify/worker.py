"""The process that runs Math-Verify on text a model wrote. Started by its path, never imported.

It is run with ``python -P``: a plain run would put this folder first on the module path, where
``math.py`` hides the standard library's. Its only imports from outside are Math-Verify's.

One JSON object per line. First it says {"ready": true} or {"error": reason}. Then, for each
{"id", "ways", "algebra_only"} it answers {"id", "correct"}. A way is a list of pairs [response,
answer], both LaTeX in a box; the request is correct if in one way all pairs are equal.

It has no clock of its own: sympy can stay inside one big-integer operation for hours, where no
alarm or thread gets a turn. The parent kills it; and should the parent die first, the kernel does,
by the limit on processor seconds that each request renews.
"""

from __future__ import annotations

import json
import os
import resource
import select
import sys
from typing import Any, TextIO

MEMORY_BYTES = 4 << 30
PARENT_CHECK_S = 2.0
CACHED = 1024  # parsed answers
POINTS = ((13, 10), (29, 4), (3, 8))  # where two expressions are compared as numbers
WARM = (r"\boxed{x^2+\frac{1}{2}\sqrt{3}}", r"\boxed{(1, 0.5)}", r"\boxed{y=\{1,2\}}")
TOLERANCE = 1e-9  # relative; numbers have 30 digits

_parsed: dict[tuple[str, str], list[Any]] = {}


def main(search_path: str, timeout_s: float) -> None:
    parent = os.getppid()
    sys.path += [p for p in search_path.split(os.pathsep) if p and p not in sys.path]
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # a library's print must not look like a reply
    try:
        import logging

        import math_verify
    except Exception as error:  # whatever stops it, the parent has to learn why
        _say(replies, {"error": f"{type(error).__name__}: {error}"})
        return
    logging.disable(logging.CRITICAL)
    _limit(resource.RLIMIT_AS, MEMORY_BYTES)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, 0)
    # The parser builds its tables as it reads: a first answer would pay for them with its time.
    for text in WARM:
        _grade(math_verify, {"ways": [[[text, text]]], "algebra_only": True})
    _say(replies, {"ready": True})
    while _request_waits(parent):
        line = sys.stdin.buffer.readline()
        if not line:
            return
        request = json.loads(line)
        _renew_processor_limit(timeout_s)
        _say(replies, {"id": request["id"], "correct": _grade(math_verify, request)})


def _grade(math_verify: Any, request: dict[str, Any]) -> bool:
    """Math-Verify's own timeouts are off: they do not stop what hangs. What it cannot read as
    mathematics it compares as text, unless the request is for ``algebra_only``."""
    fallback = "no_fallback" if request["algebra_only"] else "first_match"

    def equal(pair: list[str]) -> bool:
        found, gold = (_parse(math_verify, text, fallback) for text in pair)
        if found and gold and (settled := _settled(gold[0], found[0])) is not None:
            return settled or (fallback == "first_match" and gold[-1] == found[-1])
        return bool(
            math_verify.verify(
                gold,
                found,
                allow_set_relation_comp=True,  # 0 < x < 1 is (0, 1)
                timeout_seconds=None,
            )
        )

    return any(all(equal(pair) for pair in way) for way in request["ways"])


def _parse(math_verify: Any, text: str, fallback: str) -> list[Any]:
    """Parsing costs more than comparing, and a group's reference answer comes with each response.
    Texts are at most a few thousand characters, so the cache stays small."""
    key = (text, fallback)
    if key not in _parsed:
        if len(_parsed) >= CACHED:
            _parsed.pop(next(iter(_parsed)))
        _parsed[key] = math_verify.parse(text, fallback_mode=fallback, parsing_timeout=None)
    return _parsed[key]


def _settled(gold: Any, found: Any) -> bool | None:
    """Whether two expressions in the same variables are equal, where expanding or a number says
    so; None where it takes more. Math-Verify simplifies the difference, which costs most of its
    time on answers that are wrong. Only points at which both are real and positive variables
    count, as the variables of a problem often are."""
    import sympy
    from sympy.core.function import AppliedUndef

    for one in (gold, found):
        if not isinstance(one, sympy.Expr) or isinstance(one, sympy.Number | sympy.Symbol):
            return None
        if one.has(sympy.Float, sympy.UnevaluatedExpr, sympy.oo, sympy.zoo, sympy.nan):
            return None
        if one.has(sympy.Sum, sympy.Product, sympy.Integral, sympy.Derivative, sympy.Limit):
            return None
        if one.atoms(AppliedUndef) or one.has(sympy.MatrixBase, sympy.MatrixSymbol):
            return None
    symbols = sorted(gold.free_symbols, key=str)
    if gold.free_symbols != found.free_symbols:
        return None
    for start in POINTS:
        point = {s: sympy.Rational(*start) + sympy.Rational(i, 7) for i, s in enumerate(symbols)}
        values = [one.evalf(30, subs=point) for one in (gold, found)]
        if not all(value.is_Float or value.is_Integer for value in values):
            continue
        if abs(values[0] - values[1]) > TOLERANCE * max(1, abs(values[0])):
            return False
    return True if sympy.expand(gold - found) == 0 else None


def _say(replies: TextIO, message: dict[str, Any]) -> None:
    replies.write(json.dumps(message) + "\n")
    replies.flush()


def _request_waits(parent: int) -> bool:
    """Wait for input (or its end). False if the parent died and left its pipe open elsewhere."""
    while not select.select([0], [], [], PARENT_CHECK_S)[0]:
        if os.getppid() != parent:
            return False
    return True


def _limit(what: int, value: int) -> None:
    hard = resource.getrlimit(what)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(what, (value, value))


def _renew_processor_limit(timeout_s: float) -> None:
    """SIGXCPU ends the process when this request has used ``timeout_s`` and 2 s more."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime + timeout_s) + 2
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    if hard == resource.RLIM_INFINITY or seconds < hard:
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, hard))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
