"""Seconds of an engine that samples responses of unequal lengths with continuous batching.

Every slot of the batch holds a response; when one ends the next waiting one takes its slot. A step
makes one token for each slot that is taken: it reads the parameters once and every taken slot's
keys and values, and its arithmetic grows with the slots. The long tail is the time when most slots
are empty and a step costs nearly as much.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass


@dataclass(frozen=True)
class StepCost:
    """Seconds of one decoding step: fixed + (slots) x each + (tokens in the cache) x token."""

    fixed: float
    each: float  # arithmetic and sampling for a slot
    token: float  # of the cache
    arithmetic: float = 0.0  # seconds of a slot's matrix products, hidden behind ``fixed``

    def seconds(self, slots: float, cached: float) -> float:
        return max(self.fixed, slots * self.arithmetic) + slots * self.each + cached * self.token


@dataclass(frozen=True)
class Decoding:
    """What became of one engine's share."""

    seconds: float
    steps: float
    mean_slots: float
    tail_seconds: float  # with less than half of the slots taken


def decode_share(
    lengths: list[float], prompt: float, slots: int, cache_tokens: float, cost: StepCost
) -> Decoding:
    """The share of one engine: its responses' lengths, in the order in which they are asked for.

    ``cache_tokens`` bounds the slots too: a response holds its prompt's and, on average, half of
    its own tokens.
    """
    if not lengths:
        return Decoding(0.0, 0.0, 0.0, 0.0)
    mean = sum(lengths) / len(lengths)
    room = max(1, int(cache_tokens / (prompt + 0.5 * mean + 1)))
    width = max(1, min(slots, room, len(lengths)))
    waiting = iter(lengths[width:])
    ends = [(length, 0.0) for length in lengths[:width]]  # (step of its end, of its start)
    heapq.heapify(ends)
    now, seconds, slot_steps, tail = 0.0, 0.0, 0.0, 0.0
    started = 0.0  # sum of the taken slots' starts
    while ends:
        end, start = ends[0]
        taken, span = len(ends), end - now
        if span > 0:
            middle = now + span / 2
            cached = taken * (prompt + middle) - started
            spent = span * cost.seconds(taken, cached)
            seconds += spent
            slot_steps += span * taken
            tail += spent if taken < width / 2 else 0.0
            now = end
        started -= start
        following = next(waiting, None)
        if following is None:
            heapq.heappop(ends)
        else:
            heapq.heapreplace(ends, (now + following, now))
            started += now
    return Decoding(seconds, now, slot_steps / now if now else 0.0, tail)


def spread(values: tuple[float, ...], count: int, longest: float = 0.0) -> list[float]:
    """``count`` lengths of a distribution's quantiles, in an order without meaning, the same every
    time; few of them stand for many. ``longest`` takes the place of the last quantile."""
    chosen = [values[int((i + 0.5) * len(values) / count) % len(values)] for i in range(count)]
    chosen[-1] = max(chosen[-1], longest)
    step = next(s for s in (7, 11, 13, 17, 19, 23, 1) if count % s or s == 1)
    return [chosen[i * step % count] for i in range(count)]
