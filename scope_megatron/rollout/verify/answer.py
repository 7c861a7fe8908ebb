"""Boxed answers of responses: extraction, and equality as far as text alone decides it."""

from __future__ import annotations

import math
import re

MAX_CHARACTERS = 4096  # of a response, counted from its end; of an answer
MAX_DIGITS = 1_000_000  # of a power that may be worked out

_TOKEN = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)
_INTEGER = re.compile(r"[+-]?\d{1,4096}")
_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf)\{([^{}\\]*)\}")
_POWER = re.compile(r"(?<!\d)(\d++)(?:\^|\*\*)(?:\{([+-]?\d++)\}|\(([+-]?\d++)\)|(\d++))")
_LOOSE_SPACE = re.compile(r"(?<!\w) | (?!\w)")
_WORDS = frozenset({"yes", "no", "true", "false"})
_HUGE = 10**12  # stands for any larger number inside a tower


def last_boxed(text: str) -> str | None:
    r"""Content of the last balanced ``\boxed{...}`` (the outer one where they nest), or None.

    A box that holds nothing but another box gives the inner one's content. Escaped braces do not
    count, and a box that is never closed does not hide the ones before or inside it.
    """
    opened: list[re.Match[str] | None] = []  # a box's opening; None for a plain brace
    content = outer = (0, 0)  # where the last box's content lies, and all of the box
    for token in _TOKEN.finditer(text):
        if token[0].startswith("\\boxed"):
            opened.append(token)
        elif token[0] == "{":
            opened.append(None)
        elif token[0] == "}" and opened:
            box = opened.pop()
            if box is None:
                continue
            around = text[box.end() : outer[0]] + text[outer[1] : token.start()]
            if outer[0] < box.end() or around.strip():
                content = (box.end(), token.start())
            outer = (box.start(), token.end())
    return text[content[0] : content[1]].strip() if outer[1] else None


def equal_as_text(boxed: str, answer: str) -> bool | None:
    """Whether the two are equal, where that needs no algebra: the same text but for white space,
    two whole numbers, or two of yes/no/true/false. None where it does."""
    a, b = _plain(boxed), _plain(answer)
    if a == b:
        return True
    if _INTEGER.fullmatch(a) and _INTEGER.fullmatch(b):
        return int(a) == int(b)
    a, b = _word(a), _word(b)
    return a == b if a in _WORDS and b in _WORDS else None


def is_bomb(text: str) -> bool:
    """Whether a power of whole numbers in it has more than ``MAX_DIGITS`` digits (5^{5^{5^{5}}}):
    the algebra would try to write it out. Towers are worked out from the inside."""
    text = re.sub(r"\s+", "", text)
    while power := _POWER.search(text):
        base, exponent = int(power[1][:13]), int((power[2] or power[3] or power[4])[:14])
        digits = abs(exponent) * math.log10(base) if base > 1 else 0.0
        if digits > MAX_DIGITS:
            return True
        if exponent < 0:  # a small number, whatever its denominator
            value = 1
        else:
            value = min(base**exponent, _HUGE) if digits < 13 else _HUGE
        text = f"{text[: power.start()]}{value}{text[power.end() :]}"
    return False


def _plain(text: str) -> str:
    """Without enclosing dollar signs, a final full stop, and spaces that separate nothing."""
    text = " ".join(text.split()).rstrip(".").strip("$")
    return _LOOSE_SPACE.sub("", text)


def _word(text: str) -> str:
    return _TEXT_COMMAND.sub(r"\1", text).strip(".").casefold()
