"""Metrics of a step: recorded on every rank, reduced once.

`StepMetrics` collects numbers and reduces them with one packed all-reduce for the sums and one for
the maxima. `PhaseTimer` measures the seconds of each phase of a step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from scope_megatron.trace.spans import span

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup


class PhaseTimer:
    """Seconds per phase of a step: ``with timer("rollout"): ...``, then ``timer.pop()``.

    ``synchronize`` (torch.cuda.synchronize on GPUs) runs at the end of each phase, so that
    kernels still in flight are counted where they were started. ``entered`` and ``left`` are told
    the name of each phase as it begins and when it is over, by an error too. A phase is also a
    span of the trace, where one is written.
    """

    def __init__(
        self,
        synchronize: Callable[[], None] | None = None,
        entered: Callable[[str], None] | None = None,
        left: Callable[[str], None] | None = None,
    ) -> None:
        self._synchronize, self._entered, self._left = synchronize, entered, left
        self._seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        if self._entered is not None:
            self._entered(phase)
        start = time.perf_counter()
        try:
            with span(phase):
                yield
                if self._synchronize is not None:
                    self._synchronize()
        finally:
            elapsed = time.perf_counter() - start
            self._seconds[phase] = self._seconds.get(phase, 0.0) + elapsed
            if self._left is not None:
                self._left(phase)

    def pop(self) -> dict[str, float]:
        """``{"time/<phase>": seconds}`` since the last pop; starts again from zero."""
        seconds, self._seconds = self._seconds, {}
        return {f"time/{phase}": value for phase, value in seconds.items()}


class StepMetrics:
    """One step's numbers on this rank, reduced over a process group once.

    The names are given up front and must be the same on every rank: they fix the layout of the
    packed tensors, so a rank with nothing to record (no incorrect response, say) still fits.

    Values are floats or 0-dim tensors; tensors stay where they are until `reduce`, so recording
    one does not wait for the device.
    """

    def __init__(
        self,
        sums: Sequence[str] = (),
        means: Sequence[str] = (),
        maxima: Sequence[str] = (),
    ) -> None:
        names = [*sums, *means, *maxima]
        twice = sorted({name for name in names if names.count(name) > 1})
        assert not twice, f"metric names declared twice: {twice}"
        self._names = {"sum": sorted(sums), "mean": sorted(means), "maximum": sorted(maxima)}
        self._clear()

    def _clear(self) -> None:
        self._totals: dict[str, float | torch.Tensor] = {
            name: 0.0 for name in self._names["sum"] + self._names["mean"]
        }
        self._counts: dict[str, float | torch.Tensor] = {n: 0.0 for n in self._names["mean"]}
        self._maxima: dict[str, list[float | torch.Tensor]] = {
            name: [] for name in self._names["maximum"]
        }

    def _check(self, name: str, kind: str) -> None:
        if name not in self._names[kind]:
            raise KeyError(f"metric {name!r} is not declared as a {kind}: {self._names[kind]}")

    def has(self, name: str) -> bool:
        """Whether a name was declared."""
        return any(name in names for names in self._names.values())

    def sum(self, name: str, value: float | torch.Tensor) -> None:
        """Add ``value``; `reduce` gives the total over the step and the ranks."""
        self._check(name, "sum")
        self._totals[name] = self._totals[name] + _detached(value)

    def mean(self, name: str, total: float | torch.Tensor, count: float = 1) -> None:
        """Add ``count`` values whose sum is ``total``; `reduce` gives sum(totals)/sum(counts)."""
        self._check(name, "mean")
        self._totals[name] = self._totals[name] + _detached(total)
        self._counts[name] = self._counts[name] + _detached(count)

    def maximum(self, name: str, value: float | torch.Tensor) -> None:
        """`reduce` gives the largest value of the step over the ranks; a NaN comes out as inf."""
        self._check(name, "maximum")
        self._maxima[name].append(_detached(value))

    def reduce(
        self, group: ProcessGroup | None = None, device: torch.device | str = "cpu"
    ) -> dict[str, float]:
        """The global values by name; starts again from zero. A collective unless group is None.

        ``device`` is where the packed float64 tensors live (the group's backend must reach it).
        Sums nobody recorded are 0; means and maxima nobody recorded are left out.
        """
        sums, means, maxima = self._names["sum"], self._names["mean"], self._names["maximum"]
        numbers = [self._totals[n] for n in sums + means] + [self._counts[n] for n in means]
        totals = _all_reduce(numbers, "SUM", group, device)
        peaks = _all_reduce([_peak(self._maxima[n]) for n in maxima], "MAX", group, device)
        self._clear()

        counts = totals[len(sums) + len(means) :]
        result = dict(zip(sums, totals, strict=False))
        for name, total, count in zip(means, totals[len(sums) :], counts, strict=False):
            if count != 0:
                result[name] = total / count
        result.update((n, v) for n, v in zip(maxima, peaks, strict=True) if v != -math.inf)
        return result


def _all_reduce(
    numbers: Sequence[float | torch.Tensor],
    op: str,
    group: ProcessGroup | None,
    device: torch.device | str,
) -> list[float]:
    """``numbers`` reduced element by element over ``group`` in one float64 collective."""
    if not numbers:
        return []
    import torch
    import torch.distributed as dist

    found = {i: n for i, n in enumerate(numbers) if isinstance(n, torch.Tensor)}
    known = [0.0 if i in found else float(n) for i, n in enumerate(numbers)]
    packed = torch.tensor(known, dtype=torch.float64).to(device)  # one copy, however many they are
    if found:
        zero = packed.new_zeros(())
        placed = [found[i].to(zero).reshape(()) if i in found else zero for i in range(len(known))]
        packed = packed + torch.stack(placed)
    if group is not None:
        dist.all_reduce(packed, op=getattr(dist.ReduceOp, op), group=group)
    reduced: list[float] = packed.tolist()
    return reduced


def _peak(values: Sequence[float | torch.Tensor]) -> float:
    """The largest value; -inf when there is none, +inf for a NaN (MAX over ranks may lose it)."""
    numbers = [float(value) for value in values]
    if any(math.isnan(number) for number in numbers):
        return math.inf
    return max(numbers, default=-math.inf)


def _detached(value: float | torch.Tensor) -> float | torch.Tensor:
    """A float as it is; a tensor in float64, out of the autograd graph, on its device."""
    return value.detach().double() if hasattr(value, "detach") else float(value)
