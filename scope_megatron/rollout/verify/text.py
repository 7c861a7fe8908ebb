"""Answers compared as text: exact, multiple choice, and GSM8K's final number. No process needed."""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal

from scope_megatron.rollout.verify.answer import MAX_CHARACTERS, last_boxed
from scope_megatron.rollout.verify.hendrycks import is_equivalent
from scope_megatron.types import Answer, Verdict, accepted

Equal = Callable[[str, str], bool]

# What follows a repetition cannot begin with what it repeats, or the repetition keeps what it took
# (*+): else a text of that alone is searched through again from each of its characters.
_CHOICE = r"\(?\s*+(?:\\(?:text|textbf|mathrm|mathbf)\{\s*+\(?)?([A-Z])\)?\}?\)?"
_SAID = re.compile(
    r"(?i:answer|choice|option)(?i:\s++is)?+(?:[\s:*$(]|\\(?!(?:text|textbf|mathrm|mathbf)\{))*+"
    rf"{_CHOICE}(?![A-Za-z'])"
)
_ALONE = re.compile(rf"{_CHOICE}\s*+(?:[.:)](?!\d).*)?", re.DOTALL)
_LAST_LINE = re.compile(rf"[*_\s$]*+{_CHOICE}[*_\s.$]*")
_GSM8K = re.compile(r"####\s*([^\n]+)|(?i:the (?:final )?answer is):?\s*([^\n]+)")
_FRACTION = re.compile(r"\\[dt]?frac\{(\d+)\}\{(\d+)\}")
_NUMBER = re.compile(r"(?:[-+−]\s*+)?(?:[$€£]\s*+)?(?:\d[\d,]*\.?\d*|\.\d+)(?:\s*+/\s*+\d+)?")
_BETWEEN_DIGITS = re.compile(r"[\s,$€£]")


class TextVerifier:
    """Grades by a rule on text that cannot hang: ``equal(response, one accepted answer)``."""

    def __init__(self, equal: Equal) -> None:
        self.equal = equal

    def grade(self, items: list[tuple[str, Answer]]) -> list[Verdict]:
        """One verdict per (response text, reference answer or accepted answers), in order."""
        return [
            Verdict.CORRECT
            if any(self.equal(response, one) for one in accepted(answer))
            else Verdict.INCORRECT
            for response, answer in items
        ]

    def close(self) -> None:
        """Nothing is held."""


def exact(response: str, answer: str) -> bool:
    r"""The last ``\boxed{...}``, or the whole response where there is none, is the answer to the
    letter; only white space at the ends does not count."""
    boxed = last_boxed(response[-MAX_CHARACTERS:])
    said = response if boxed is None else boxed
    return said.strip() == answer.strip()


def choice(response: str, answer: str) -> bool:
    r"""The letter chosen: in the last box (``\boxed{C}``, ``\boxed{\text{(C)}}``), else after the
    last "answer", "choice" or "option", else alone on the last line."""
    said = chosen_letter(response[-MAX_CHARACTERS:])
    meant = _ALONE.fullmatch((last_boxed(answer) or answer).strip())
    return said is not None and meant is not None and said == meant[1]


def chosen_letter(response: str) -> str | None:
    """The letter that ``choice`` compares, None where none was chosen."""
    boxed = last_boxed(response)
    if boxed is not None:
        match = _ALONE.fullmatch(boxed.strip().strip("$").strip())
        return match[1] if match else None
    said = _SAID.findall(response)
    if said:
        return str(said[-1])
    lines = response.strip().splitlines()
    match = _LAST_LINE.fullmatch(lines[-1]) if lines else None
    return match[1] if match else None


def gsm8k(response: str, answer: str) -> bool:
    r"""The final number: in the last box, after ``####`` or after "the answer is", whichever comes
    last. Compared as a number: ``$1,234.00`` is 1234. The answer may be GSM8K's own, with its
    working before ``####``."""
    response = response[-MAX_CHARACTERS:]
    said = [(m.start(), m[1] or m[2]) for m in _GSM8K.finditer(response)]
    boxed = last_boxed(response)
    if boxed is not None:
        said.append((max(response.rfind("\\boxed"), response.rfind("\\fbox")), boxed))
    if not said:
        return False
    value, reference = _value(max(said)[1]), _value(answer.rsplit("####")[-1])
    return value is not None and value == reference


def _value(text: str) -> Decimal | None:
    """The first number of a text, a fraction worked out; None without one."""
    text = text.replace("{,}", ",").replace("\\!", "").replace("\\$", "$").replace("\\,", "")
    match = _NUMBER.search(_FRACTION.sub(r"\1/\2", text).rpartition("=")[2])
    if match is None:
        return None
    digits = _BETWEEN_DIGITS.sub("", match[0]).replace("−", "-").rstrip(".")
    numerator, _, denominator = digits.partition("/")
    try:
        return Decimal(numerator) / Decimal(denominator or 1)
    except ArithmeticError:  # a division by zero, or more digits than a Decimal has
        return None


def string(response: str, answer: str) -> bool:
    r"""The last ``\boxed{...}`` equals the answer by Hendrycks' rules (``hendrycks``), as the
    reference code of arXiv 2604.10688 grades."""
    boxed = last_boxed(response)
    return boxed is not None and is_equivalent(boxed, answer)
