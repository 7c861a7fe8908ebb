"""Sinks of metrics: metrics.jsonl, TensorBoard and W&B, written by rank 0.

TensorBoard and W&B are imported only where they are used, and torch not at all, so that reading
a finished run (`figure.py`) costs none of them.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from scope_megatron import outputs
from scope_megatron.disk import write_atomically

NONFINITE_SUFFIX = ".nonfinite"
MOST_SHOWN_CHARACTERS = 2000  # of a text in TensorBoard


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


def merge_values(
    row: Mapping[str, Any], values: dict[str, float], nonfinite: dict[str, int]
) -> None:
    """Add a line's finite numbers to its step's ``values``; count in ``nonfinite`` the metrics
    that it names as not finite."""
    for name, value in row.items():
        if name.endswith(NONFINITE_SUFFIX):
            metric = name.removesuffix(NONFINITE_SUFFIX)
            nonfinite[metric] = nonfinite.get(metric, 0) + 1
        elif isinstance(value, (int, float)) and math.isfinite(value):
            values[name] = float(value)


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


@dataclass(frozen=True)
class ShownResponse:
    """A response as TensorBoard and W&B show it."""

    prompt: str
    response: str
    verdict: str
    path: str
    weight: float | None
    tokens: int


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

    def show_responses(self, step: int, responses: Sequence[ShownResponse]) -> None:
        """A table of some responses of a step: TensorBoard's text, W&B's table."""
        if not responses:
            return
        if self._board is not None:
            try:
                self._board.add_text("responses", responses_table(responses), step)
            except OSError as error:
                self._tell("TensorBoard events are no longer", error)
                self._board = None
        if self._wandb is not None:
            import wandb

            rows = [list(asdict(response).values()) for response in responses]
            table = wandb.Table(columns=[f.name for f in fields(ShownResponse)], data=rows)
            self._wandb.log({"responses": table}, step=step)

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


def responses_table(responses: Sequence[ShownResponse]) -> str:
    """Rows of a Markdown table in which a response's own marks mean nothing."""
    names = [field.name for field in fields(ShownResponse)]
    rows = [[_cell(value) for value in asdict(response).values()] for response in responses]
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cell(value: object) -> str:
    """At most so many characters, in which nothing is HTML or Markdown; control characters as
    their pictures."""
    if not isinstance(value, str):
        return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
    cut = value if len(value) <= MOST_SHOWN_CHARACTERS else value[:MOST_SHOWN_CHARACTERS] + " …"
    shown = "".join(
        "<br>" if c == "\n" else visible(c) if c.isalnum() or c == " " else f"&#{ord(visible(c))};"
        for c in cut
    )
    return shown


def visible(character: str) -> str:
    """The character; the picture of a control character, a replacement for one that is not seen
    but steers (direction marks, lone surrogates)."""
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    hidden = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
    return "\ufffd" if hidden else character


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
