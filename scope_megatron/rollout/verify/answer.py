"""Boxed answers of responses: extraction, and equality as far as text alone decides it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

MAX_CHARACTERS = 4096  # of a response, counted from its end; of an answer
MAX_DIGITS = 1_000_000  # of a power that may be worked out

MAX_BETWEEN = 70  # characters between two boxes of one statement

_TOKEN = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_DECIMAL = re.compile(r"([+-]?\d{1,99})(?:\.(\d{1,99})|,(\d{1,2}|\d{4,99}))")
_INTEGER = re.compile(r"[+-]?\d{1,4096}")
_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf)\{([^{}\\]*)\}")
_POWER = re.compile(r"(?<!\d)(\d++)(?:\^|\*\*)(?:\{([+-]?\d++)\}|\(([+-]?\d++)\)|(\d++))")
_LOOSE_SPACE = re.compile(r"(?<!\w) | (?!\w)")
_SIZE_OR_SPACE = re.compile(r"\\(?:left|right)(?![a-zA-Z])|\\[,;! ]")
_WORDS = frozenset({"yes", "no", "true", "false"})
_LAYOUT = re.compile(  # what only sets the type: math delimiters, spaces, alignment, emphasis
    r"\\\$|\$|\\[()\[\],;!: ]|\\q?quad(?![a-zA-Z])|\\\\|&|\*\*|\\(?:left|right)(?![a-zA-Z])"
)
_LABEL = re.compile(  # of the next box: x =, x_1 =, \alpha =, f(1) =
    r"(?:(?<![a-zA-Z\\])[a-zA-Z]|\\[a-zA-Z]+)(?:_?\{?\w{1,3}\}?|'|\(\w\))?\s?=\s?$"
)
_SEPARATOR = re.compile(r"[,;]|(?<![a-zA-Z])(?:and|or)(?![a-zA-Z])")
_TAKEN_BACK = re.compile(  # the later box replaces, repeats or follows from the one before
    r"[.!?](?:\s|$)|[=<>≈→⇒:]|\\(?:approx|implies|iff|to|neq?|(?:Long)?[Rr]ightarrow|therefore)"
    r"(?![a-zA-Z])|(?<![a-zA-Z])(?:no|not|wait|actually|instead|rather|so|thus|therefore|hence|"
    r"which|that|but|then|now|because|since|equals?|simplif\w*|becomes?|gives?|means?|check\w*|"
    r"confirm\w*|again|finally|final|answers?|results?|total|sum)(?![a-zA-Z])",
    re.IGNORECASE,
)
_HUGE = 10**12  # stands for any larger number inside a tower


@dataclass(frozen=True)
class Box:
    """A closed ``\\boxed{...}`` of ``text``: where it starts, where its content begins and stops,
    and the outermost boxes in that, in order."""

    text: str
    start: int
    begin: int
    stop: int
    inner: list[Box]

    @property
    def content(self) -> str:
        return self.text[self.begin : self.stop].strip()


def last_boxed(text: str) -> str | None:
    r"""Content of the last balanced ``\boxed{...}`` (the outer one where they nest), or None.

    A box that holds nothing but another box gives the inner one's content. Escaped braces do not
    count, and a box that is never closed does not hide the ones before or inside it.
    """
    boxes = _boxes(text)
    return _innermost(boxes[-1]).content if boxes else None


def boxed_answers(text: str) -> list[str]:
    r"""Contents of all boxes of the closing statement, in order, none twice; [] without a box.

    The last box belongs to it, and every box before it that only a list joins to the next:
    ``\boxed{1} and \boxed{2}``, ``x = \boxed{1}, y = \boxed{2}``, ``\boxed{1} \quad \boxed{2}``.
    Not joined are ``\boxed{4}, no: \boxed{3}`` and ``\boxed{4}. ... \boxed{3}``: there the last
    box takes back the one before. A box that holds boxes says what they say.
    """
    answers: dict[str, str] = {}
    waiting = _closing_statement(_boxes(text))[::-1]
    while waiting:
        box = _innermost(waiting.pop())
        inner = box.inner or _boxes(content := box.content)
        if inner:
            waiting += _closing_statement(inner)[::-1]
        else:
            answers.setdefault(_plain(content), content)
    return list(answers.values())


def pairs_to_compare(found: list[str], gold: list[str]) -> list[list[tuple[str, str]]]:
    """Ways in which what was found may say the same as the reference answer.

    A way is a list of pairs (found, reference) that all have to be equal. One text against one is
    one pair; two tuples or intervals of the same kind go element by element, which reads faster.
    Several boxes may be the elements of a set or a list, or of a tuple in its order, or all say
    the same.
    """
    said, meant = ", ".join(found), ", ".join(gold)
    if len(found) == 1:
        brackets, elements = _elements(said)
        gold_brackets, gold_elements = _elements(meant)
        same = brackets and brackets == gold_brackets and len(elements) == len(gold_elements)
        return [list(zip(elements, gold_elements, strict=True))] if same else [[(said, meant)]]
    ways = [[(said, meant)]]
    parts = gold if len(gold) > 1 else _elements(meant)[1]
    if len(parts) == len(found):
        ways.append(list(zip(found, parts, strict=True)))
    if len(gold) == 1:
        ways.append([(answer, meant) for answer in found])
    return ways


def equal_as_text(boxed: str, answer: str) -> bool | None:
    """Whether the two are equal, where that needs no algebra: the same text but for white space,
    two whole numbers, a decimal number with a comma and with a point, or two of
    yes/no/true/false. None where it does."""
    a, b = _plain(boxed), _plain(answer)
    if a == b or (_with_point(boxed) or a) == (_with_point(answer) or b):
        return True
    if _INTEGER.fullmatch(a) and _INTEGER.fullmatch(b):
        return int(a) == int(b)
    a, b = _word(a), _word(b)
    return a == b if a in _WORDS and b in _WORDS else None


def is_bomb(text: str) -> bool:
    """Whether a power of whole numbers in it has more than ``MAX_DIGITS`` digits (5^{5^{5^{5}}}):
    the algebra would try to write it out. Towers are worked out from the inside."""
    text = "".join(text.split())
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


def _boxes(text: str) -> list[Box]:
    """The outermost closed boxes, in order; of a text with doubled backslashes as well."""
    boxes = _closed_boxes(text)
    if not boxes and "\\\\boxed" in text:
        boxes = _closed_boxes(text.replace("\\\\", "\\"))
    return boxes


def _closed_boxes(text: str) -> list[Box]:
    opened: list[re.Match[str] | None] = []  # a box's opening; None for a plain brace
    boxes: list[Box] = []
    for token in _TOKEN.finditer(text):
        if token[0].startswith(("\\boxed", "\\fbox")):
            opened.append(token)
        elif token[0] == "{":
            opened.append(None)
        elif token[0] == "}" and opened:
            box = opened.pop()
            if box is None:
                continue
            first = len(boxes)
            while first and boxes[first - 1].start > box.start():
                first -= 1
            boxes[first:] = [Box(text, box.start(), box.end(), token.start(), boxes[first:])]
    return boxes


def _innermost(box: Box) -> Box:
    """The box itself, or the one that is all it holds."""
    while len(box.inner) == 1:
        inner, text = box.inner[0], box.text
        if text[box.begin : inner.start].strip() or text[inner.stop + 1 : box.stop].strip():
            break
        box = inner
    return box


def _closing_statement(boxes: list[Box]) -> list[Box]:
    """The last of the boxes of a text, and those before it that only a list joins to the next."""
    first = len(boxes) - 1
    while first > 0 and _joins(boxes[first].text[boxes[first - 1].stop + 1 : boxes[first].start]):
        first -= 1
    return boxes[max(first, 0) :]


def _joins(between: str) -> bool:
    """Whether two boxes with this text between them are parts of one answer."""
    if len(between) > MAX_BETWEEN:
        return False
    text = " ".join(_LAYOUT.sub(" ", _TEXT_COMMAND.sub(r" \1 ", between)).split())
    text = _LABEL.sub("", text)
    if not text:
        return True
    return bool(_SEPARATOR.search(text)) and not _TAKEN_BACK.search(text)


def _elements(text: str) -> tuple[str, list[str]]:
    """(brackets, elements) of ``(a, b)`` or ``[a, b)``; ("", elements) of a list without them."""
    text = _SIZE_OR_SPACE.sub("", text).strip().strip("$").strip()
    brackets = ""
    if text[:1] in ("(", "[") and text[-1:] in (")", "]"):
        inner, depth = text[1:-1], 0
        for c in inner:
            depth += (c in "([{") - (c in ")]}")
            if depth < 0:
                break
        if depth == 0:
            brackets, text = text[0] + text[-1], inner
    elements, depth, start = [], 0, 0
    for i, c in enumerate(text):
        depth += (c in "([{") - (c in ")]}")
        if c == "," and depth == 0:
            elements.append(text[start:i].strip())
            start = i + 1
    elements.append(text[start:].strip())
    return (brackets if len(elements) > 1 else "", elements)


def _plain(text: str) -> str:
    """Without enclosing dollar signs, a final full stop, and spaces that separate nothing."""
    text = " ".join(text.split()).rstrip(".").strip("$")
    return _LOOSE_SPACE.sub("", text)


def _with_point(text: str) -> str | None:
    """1,22 as 1.22, which stays as it is; None for everything else (1,222 is a whole number)."""
    match = _DECIMAL.fullmatch(text.strip().strip("$"))
    return f"{match[1]}.{match[2] or match[3]}" if match else None


def _word(text: str) -> str:
    return _TEXT_COMMAND.sub(r"\1", text).strip(".").casefold()
