"""What an algorithm is to settings, rules and documentation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Condition:
    """Another setting that has to be ``value``, or a number above ``above``."""

    key: str
    value: str | bool | None = None
    above: float = 0

    def holds(self, value: Any) -> bool:
        """Whether the setting may have this ``value``."""
        return bool(value == self.value if self.value is not None else value > self.above)

    def __str__(self) -> str:
        if self.value is None:
            return f"{self.key} > {self.above}"
        return f"{self.key}={str(self.value).lower()}"


# dotted setting -> where it is read: with all of these, which are of settings that are read
Reads = dict[str, tuple[Condition, ...]]


@dataclass(frozen=True)
class AlgorithmSpec:
    """An algorithm, without its mathematics (``learn/algorithms``).

    ``reads`` has every setting of `algorithm`, `objective` and `teacher` that this algorithm reads,
    and those of other sections that are not for all algorithms. A setting that is not in it, or
    whose conditions do not hold, is refused unless it has its default.
    """

    reads: Reads
    samples: bool = True  # the student samples the responses that it is trained on
    rewards: bool = False  # the rewards of a group's responses are compared
