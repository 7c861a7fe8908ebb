"""What a part writes down: checks that must hold, targets that should, figures to be read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

T = TypeVar("T")
ReadingKind = Literal["check", "target", "figure", "note"]
PartOutcome = Literal["passed", "failed", "crashed", "timed out", "left out"]


@dataclass(frozen=True)
class Reading:
    """One line of a part's record. ``ok`` is None where nothing is asked of the value."""

    kind: ReadingKind
    name: str
    value: float | str
    unit: str = ""
    limit: str = ""  # "at most 0.01"
    ok: bool | None = None

    @property
    def shown(self) -> str:
        """The value as a person reads it."""
        if isinstance(self.value, str):
            return self.value
        number = self.value
        text = f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.4g}"
        return f"{text} {self.unit}".strip()


@dataclass
class Result:
    """What became of a part."""

    part: str
    outcome: PartOutcome
    seconds: float = 0.0
    entries: list[Reading] = field(default_factory=list)
    reason: str = ""  # why it failed, crashed or was left out

    @property
    def wrong(self) -> bool:
        """Whether the proof fails by this part."""
        return self.outcome in ("failed", "crashed", "timed out")

    @property
    def missed(self) -> list[Reading]:
        """Targets that were not met."""
        return [e for e in self.entries if e.kind == "target" and e.ok is False]

    @classmethod
    def of(cls, raw: dict[str, Any]) -> Result:
        """From the JSON that a process left."""
        return cls(**raw | {"entries": [Reading(**entry) for entry in raw["entries"]]})


@dataclass
class Proof:
    """Handed to a part: sizes, a folder of its own, and where to write down what it finds.

    ``shared`` is common to the parts of one process: what one has built the next may use.
    """

    rehearse: bool
    folder: Path
    shared: dict[str, Any] = field(default_factory=dict)
    entries: list[Reading] = field(default_factory=list)

    def size(self, real: T, toy: T) -> T:
        """``toy`` in a rehearsal."""
        return toy if self.rehearse else real

    def once(self, name: str, build: Callable[[], T]) -> T:
        """What ``build`` gives, built by the first part of this process that asks for it.

        Raises RuntimeError where that failed: it is not tried twice.
        """
        if name in self.shared.get("failed", {}):
            raise RuntimeError(f"the {name} was not built: {self.shared['failed'][name]}")
        if name not in self.shared:
            try:
                self.shared[name] = build()
            except Exception as error:
                self.shared.setdefault("failed", {})[name] = f"{type(error).__name__}: {error}"
                raise
        built: T = self.shared[name]
        return built

    def check(
        self,
        name: str,
        value: float,
        *,
        at_most: float | None = None,
        at_least: float | None = None,
        unit: str = "",
    ) -> None:
        """A value that must keep its limit, or the part has failed. NaN keeps none."""
        self._judge("check", name, value, at_most, at_least, unit)

    def target(
        self,
        name: str,
        value: float,
        *,
        at_most: float | None = None,
        at_least: float | None = None,
        unit: str = "",
    ) -> None:
        """A value that should keep its limit; not judged in a rehearsal, whose sizes are toys."""
        if self.rehearse:
            self.figure(name, value, unit)
        else:
            self._judge("target", name, value, at_most, at_least, unit)

    def figure(self, name: str, value: float | str, unit: str = "") -> None:
        """A value to be read."""
        self.entries.append(Reading("figure", name, value, unit))

    def note(self, name: str, text: str) -> None:
        """Words, for instance what of this part was left out and why."""
        self.entries.append(Reading("note", name, text))

    def _judge(
        self,
        kind: ReadingKind,
        name: str,
        value: float,
        at_most: float | None,
        at_least: float | None,
        unit: str,
    ) -> None:
        assert (at_most is None) != (at_least is None), "one limit"
        ok = value <= at_most if at_most is not None else value >= (at_least or 0.0)
        word = f"at most {at_most:g}" if at_most is not None else f"at least {at_least:g}"
        self.entries.append(Reading(kind, name, float(value), unit, word, bool(ok)))

    @property
    def failures(self) -> list[Reading]:
        return [entry for entry in self.entries if entry.kind == "check" and not entry.ok]
