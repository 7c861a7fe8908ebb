"""Metrics: record now, reduce once per step, write to JSONL, TensorBoard and W&B.

`StepMetrics` collects numbers on every rank and reduces them with one packed all-reduce for the
sums and one for the maxima. `PhaseTimer` says where a step's seconds went. `MetricLogger` writes
what came out, on rank 0.

torch, TensorBoard and W&B are imported only where they are used, so that reading a finished run
(`report.py`) costs none of them.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scope_megatron import outputs
from scope_megatron.disk import write_atomically

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup

NONFINITE_SUFFIX = ".nonfinite"


def parse_line(line: bytes | str) -> dict[str, Any] | None:
    """One line of metrics.jsonl as a dict with an integer ``step``; None if it is not one.

    A killed run can leave a torn last line, a full disk an empty one.
    """
    try:
        row = json.loads(line)
    except ValueError:  # also UnicodeDecodeError
        return None
    if not isinstance(row, dict) or type(row.get("step")) is not int:
        return None
    return row


def encode_line(step: int, values: Mapping[str, float]) -> str:
    """One JSON line, keys sorted. JSON has no NaN: such a value becomes null and is named.

    ``{"loss/total": nan}`` is written as ``"loss/total": null, "loss/total.nonfinite": "nan"``.
    """
    row: dict[str, Any] = {}
    for name, value in values.items():
        number = float(value)
        if math.isfinite(number):
            row[name] = int(value) if isinstance(value, int) else number
        else:
            row[name] = None
            row[name + NONFINITE_SUFFIX] = str(number)
    row["step"] = int(step)
    return json.dumps(row, sort_keys=True, allow_nan=False)


def rewind(path: Path, start_step: int) -> int:
    """Drop the lines of ``path`` with step > ``start_step`` (and unreadable ones), atomically.

    Returns how many lines went. A crash leaves either the old file or the new one.
    """
    if not path.exists():
        return 0
    lines = path.read_bytes().splitlines()
    rows = [(line, parse_line(line)) for line in lines]
    kept = [line for line, row in rows if row is not None and row["step"] <= start_step]
    write_atomically(path, b"".join(line + b"\n" for line in kept))
    return len(lines) - len(kept)


class MetricLogger:
    """Writes the metrics of a run. With ``enabled`` false (every rank but 0) it does nothing.

    ``start_step`` is the last step that is already done when a run resumes: later lines in
    metrics.jsonl, from steps that will be done again, are dropped. -1 begins a new file; the one
    of an earlier attempt is kept as metrics.1.jsonl, or the next free number. None appends.

    A disk that is full or gone stops nothing: one line on stderr says so, and lines wait in memory
    until they can be written.

    Raises ValueError naming the setting when TensorBoard or W&B is asked for but not installed.
    """

    def __init__(
        self,
        run_dir: Path,
        tensorboard: bool,
        wandb_project: str | None,
        config_dict: Mapping[str, Any],
        enabled: bool,
        start_step: int | None = None,
    ) -> None:
        self._file = self._board = self._wandb = None
        self._waiting = b""  # lines, or the rest of one, that the disk did not take
        self._told = False
        if not enabled:
            return
        run_dir = Path(run_dir)
        run_dir.mkdir(parents=True, exist_ok=True)
        if wandb_project is not None:
            self._wandb = _start_wandb(run_dir, wandb_project, config_dict, start_step)
        if tensorboard:
            self._board = _start_tensorboard(run_dir, start_step)
        path = run_dir / outputs.METRICS
        if start_step == -1:
            _set_aside(path)
        elif start_step is not None:
            rewind(path, start_step)
        torn = path.exists() and path.read_bytes()[-1:] not in (b"", b"\n")
        self._file = path.open("ab", buffering=0)
        if torn:  # a killed run's half line must not swallow the next one
            self._waiting = b"\n"

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Append one step's values; handed to the system when this returns, or kept for later."""
        if self._file is None:
            return
        values = {name: value for name, value in values.items() if name != "step"}
        self._waiting += encode_line(step, values).encode() + b"\n"
        self._write_waiting()
        if self._board is not None:
            try:
                for name, value in values.items():
                    self._board.add_scalar(name, float(value), step)
            except OSError as error:  # its writer has stopped for good
                self._tell("TensorBoard events are no longer", error)
                self._board = None
        if self._wandb is not None:
            self._wandb.log({name: float(value) for name, value in values.items()}, step=step)

    def close(self) -> None:
        """Flush and close every sink. May be called twice."""
        if self._file is not None:
            self._write_waiting()
            self._file.close()
        if self._board is not None:
            try:
                self._board.close()
            except OSError as error:
                self._tell("the last TensorBoard events are not", error)
        if self._wandb is not None:
            self._wandb.finish()
        self._file = self._board = self._wandb = None

    def _write_waiting(self) -> None:
        """Write what waits, as far as it goes."""
        assert self._file is not None
        try:
            while self._waiting:
                self._waiting = self._waiting[self._file.write(self._waiting) :]
        except OSError as error:
            if not self._told:
                self._tell(f"{self._file.name} is not", error)
            self._told = True

    def _tell(self, what: str, error: OSError) -> None:
        print(f"{what} written: {error.strerror}; the run goes on", file=sys.stderr, flush=True)

    def __enter__(self) -> MetricLogger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _set_aside(path: Path) -> None:
    """Give the metrics of an earlier attempt in the same directory another name."""
    if not path.exists() or path.stat().st_size == 0:
        return
    numbered = (path.with_suffix(f".{number}{path.suffix}") for number in itertools.count(1))
    path.rename(next(name for name in numbered if not name.exists()))


def _start_tensorboard(run_dir: Path, start_step: int | None) -> Any:
    if find_spec("tensorboard") is None:
        raise ValueError(
            "logging.tensorboard is true but tensorboard is not installed: "
            "`pip install tensorboard`, or set logging.tensorboard=false"
        )
    from torch.utils.tensorboard import SummaryWriter

    purge_step = None if start_step is None else start_step + 1  # hides the steps done again
    return SummaryWriter(log_dir=str(run_dir / outputs.TENSORBOARD), purge_step=purge_step)


def _start_wandb(
    run_dir: Path, project: str, config_dict: Mapping[str, Any], start_step: int | None
) -> Any:
    if find_spec("wandb") is None:
        raise ValueError(
            f"logging.wandb_project is {project!r} but wandb is not installed: "
            "`pip install wandb`, or set logging.wandb_project=null"
        )
    import wandb

    id_file = run_dir / outputs.WANDB_ID  # a resumed run goes on in the same W&B run
    resumed = start_step is not None and id_file.exists()
    run_id = id_file.read_text().strip() if resumed else os.urandom(6).hex()
    id_file.write_text(run_id + "\n")
    return wandb.init(
        project=project,
        name=run_dir.resolve().name,
        id=run_id,
        resume="allow",
        dir=str(run_dir),
        config=dict(config_dict),
    )


class PhaseTimer:
    """Seconds per phase of a step: ``with timer("rollout"): ...``, then ``timer.pop()``.

    ``synchronize`` (torch.cuda.synchronize on GPUs) runs at the end of each phase, so that
    kernels still in flight are counted where they were started. ``entered`` is told the name of
    each phase as it begins.
    """

    def __init__(
        self,
        synchronize: Callable[[], None] | None = None,
        entered: Callable[[str], None] | None = None,
    ) -> None:
        self._synchronize, self._entered = synchronize, entered
        self._seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        if self._entered is not None:
            self._entered(phase)
        start = time.perf_counter()
        try:
            yield
            if self._synchronize is not None:
                self._synchronize()
        finally:
            elapsed = time.perf_counter() - start
            self._seconds[phase] = self._seconds.get(phase, 0.0) + elapsed

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

    scalars = [torch.as_tensor(n, dtype=torch.float64, device=device) for n in numbers]
    packed = torch.stack([scalar.reshape(()) for scalar in scalars])
    if group is not None:
        dist.all_reduce(packed, op=getattr(dist.ReduceOp, op), group=group)
    return packed.tolist()


def _peak(values: Sequence[float | torch.Tensor]) -> float:
    """The largest value; -inf when there is none, +inf for a NaN (MAX over ranks may lose it)."""
    numbers = [float(value) for value in values]
    if any(math.isnan(number) for number in numbers):
        return math.inf
    return max(numbers, default=-math.inf)


def _detached(value: float | torch.Tensor) -> float | torch.Tensor:
    """A float as it is; a tensor in float64, out of the autograd graph, on its device."""
    return value.detach().double() if hasattr(value, "detach") else float(value)
