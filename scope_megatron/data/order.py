"""Which prompts each step takes: a function of (seed, step) alone, so nothing has to be saved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

BLOCK = 1 << 16  # positions over which the sets' shares are met exactly, rounded


class Order(Protocol):
    """What the trainer asks for."""

    def batch(self, step: int, batch_size: int) -> list[int]:
        """Indices of step ``step`` (from 0), [batch_size]."""
        ...


class PromptOrder:
    """Which prompts each step takes: endless epochs over ``size`` prompts, a new permutation in
    each. A batch is a function of (seed, step) alone, so a resumed run needs no saved position."""

    def __init__(self, size: int, seed: int | Sequence[int], shuffle: bool = True) -> None:
        if size < 1:
            raise ValueError("data.train: there is no prompt to draw from")
        self.size, self.shuffle = size, shuffle
        self.seed = [seed] if isinstance(seed, int) else list(seed)
        self._epochs: dict[int, np.ndarray] = {}  # the permutations last used

    def batch(self, step: int, batch_size: int) -> list[int]:
        """Indices of step ``step`` (from 0), [batch_size]. No index comes twice in an epoch; a
        batch at the end of one goes on into the next."""
        return [self.at(p) for p in range(step * batch_size, (step + 1) * batch_size)]

    def at(self, position: int) -> int:
        """The index at a position of the endless sequence."""
        return int(self._epoch(position // self.size)[position % self.size])

    def _epoch(self, epoch: int) -> np.ndarray:
        if epoch not in self._epochs:
            if len(self._epochs) > 1:
                self._epochs.clear()
            generator = np.random.default_rng([*self.seed, epoch])
            order = np.arange(self.size)
            self._epochs[epoch] = generator.permutation(order) if self.shuffle else order
        return self._epochs[epoch]


class WeightedOrder:
    """Sets with weights: each gives its share of every stretch of prompts, however short.

    The sets take turns in one fixed pattern of BLOCK positions, which repeats; every set goes
    through its own epochs at its own pace.
    """

    def __init__(
        self, sizes: Sequence[int], weights: Sequence[float], seed: int, shuffle: bool = True
    ) -> None:
        self._orders = [
            PromptOrder(size, (seed, place), shuffle) for place, size in enumerate(sizes)
        ]
        self._starts = np.cumsum([0, *sizes[:-1]])
        self._pattern = _interleave(np.asarray(weights, dtype=np.float64))
        self._counts = np.bincount(self._pattern, minlength=len(sizes))
        self._turn = np.zeros(BLOCK, dtype=np.int64)  # how often its set came before, in the block
        for place in range(len(sizes)):
            mine = self._pattern == place
            self._turn[mine] = np.arange(mine.sum())

    def batch(self, step: int, batch_size: int) -> list[int]:
        """Indices of step ``step`` (from 0), [batch_size]."""
        return [self._at(p) for p in range(step * batch_size, (step + 1) * batch_size)]

    def _at(self, position: int) -> int:
        block, offset = divmod(position, BLOCK)
        place = int(self._pattern[offset])
        drawn = block * int(self._counts[place]) + int(self._turn[offset])
        return int(self._starts[place]) + self._orders[place].at(drawn)


def _interleave(weights: np.ndarray) -> np.ndarray:
    """The set at each of BLOCK positions [BLOCK]: always the one furthest behind its share."""
    shares = weights / weights.sum()
    behind, pattern = np.zeros_like(shares), np.empty(BLOCK, dtype=np.int64)
    for position in range(BLOCK):
        behind += shares
        place = int(np.argmax(behind))
        behind[place] -= 1.0
        pattern[position] = place
    return pattern


def order_of(
    sizes: Sequence[int], weights: Sequence[float | None], seed: int, shuffle: bool
) -> Order:
    """The order of a training: over all rows alike, or by the sets' weights."""
    given = [weight for weight in weights if weight is not None]
    if not given:
        return PromptOrder(sum(sizes), seed, shuffle)
    return WeightedOrder(sizes, given, seed, shuffle)
