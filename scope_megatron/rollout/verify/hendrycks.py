"""Equivalence of two LaTeX answers as text, by the rules of the MATH dataset's own grader.

Source: Hendrycks et al. 2021 (arXiv 2103.03874); the rules are those that graders of MATH share:
both answers are brought to one spelling and then compared to the letter. No algebra: 1/2 and
\\frac{1}{2} are equal, 0.25 and \\frac{1}{4} are not.
"""

from __future__ import annotations

import re

_DROPPED = ("\n", "\\!", "\\left", "\\right", "^{\\circ}", "^\\circ", "\\$", "\\%", "%")
_UNIT = "\\text{ "
_FRACTION = re.compile(r"\\frac(?:([^{])([^{])|([^{])(?=\{))")
_ROOT = re.compile(r"\\sqrt([^{])")
_RATIO = re.compile(r"(0|-?[1-9]\d*)/(0|-?[1-9]\d*)")


def is_equivalent(one: str, other: str) -> bool:
    """Whether both come to the same spelling."""
    return canonical(one) == canonical(other)


def canonical(text: str) -> str:
    """The spelling that is compared."""
    text = text.replace("\\\\", "\\").replace("tfrac", "frac").replace("dfrac", "frac")
    for dropped in _DROPPED:
        text = text.replace(dropped, "")
    text = _without_unit(text)
    text = text.replace(" .", " 0.").replace("{.", "{0.")
    if not text:
        return text
    if text.startswith("."):
        text = "0" + text
    text = _right_of_short_equation(text)
    text = _ROOT.sub(r"\\sqrt{\1}", text)
    text = _FRACTION.sub(_with_braces, text.replace(" ", ""))
    if text == "0.5":
        return "\\frac{1}{2}"
    ratio = _RATIO.fullmatch(text)
    if ratio:
        return f"\\frac{{{ratio[1]}}}{{{ratio[2]}}}"
    return text


def _without_unit(text: str) -> str:
    """A unit is a text that begins with a space and ends the answer."""
    before, found, _ = text.partition(_UNIT)
    return before if found and text.count(_UNIT) == 1 else text


def _right_of_short_equation(text: str) -> str:
    """``k = 5`` is 5: a name of at most two characters before a single equals sign."""
    left, equals, right = text.partition("=")
    return right if equals and "=" not in right and len(left) <= 2 else text


def _with_braces(match: re.Match[str]) -> str:
    if match[3] is not None:
        return f"\\frac{{{match[3]}}}"
    return f"\\frac{{{match[1]}}}{{{match[2]}}}"
