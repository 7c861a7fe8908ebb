"""Terminal output of a run: header, progress, tables; rank 0 only.

On a terminal: a header, then a live progress bar with the last step's numbers under it. Where
stdout is not a terminal (CI, a Slurm log): the same header, then one plain line per step. A
metric that is not there is shown as "-"; nothing here may stop a run.
"""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

from rich import box
from rich.console import Console as RichConsole
from rich.console import Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

PHASES = ("rollout", "verify", "score", "train", "sync")
PLAIN_WIDTH = 100  # columns of the header and the tables where there is no terminal
ETA_STEPS = 20  # the time left is judged from this many last steps
SPARKS = "▁▂▃▄▅▆▇█"

Metrics = Mapping[str, float | None]


def number(metrics: Metrics, name: str, form: str = ".3f", scale: float = 1.0) -> str:
    """``metrics[name] * scale`` formatted, or "-" when it is missing or not a number at all."""
    value = metrics.get(name)
    if not isinstance(value, (int, float)):
        return "-"
    return format(value * scale, form) if math.isfinite(value) else str(float(value))


def paths(metrics: Metrics) -> str:
    """Sizes of the two paths and of what is in neither."""
    correct, incorrect, masked = (
        number(metrics, f"path/{path}", ".0f") for path in ("correct", "incorrect", "masked")
    )
    return f"{correct} correct, {incorrect} incorrect, {masked} masked"


def losses(metrics: Metrics) -> str:
    """The total, then the terms that are there: ``0.1234 (mle 0.1, kl 0.02)``."""
    terms = [
        f"{name.removeprefix('loss/')} {number(metrics, name, '.4g')}"
        for name in metrics
        if name.startswith("loss/") and name != "loss/total"
    ]
    total = number(metrics, "loss/total", ".4g")
    return f"{total} ({', '.join(terms)})" if terms else total


def phases(metrics: Metrics) -> str:
    """Seconds of the phases that were timed."""
    timed = [phase for phase in PHASES if metrics.get(f"time/{phase}") is not None]
    return " ".join(f"{p} {number(metrics, f'time/{p}', '.1f')}s" for p in timed) or "-"


def throughput(metrics: Metrics) -> str:
    """Tokens (prompt and response) of the step over its wall time."""
    tokens, seconds = metrics.get("tokens/total"), metrics.get("time/step")
    if tokens is None or not seconds or not math.isfinite(tokens / seconds):
        return "-"
    return f"{tokens / seconds:,.0f}"


def evaluations(metrics: Metrics) -> dict[str, float]:
    """``{"avg@8": 0.31, ...}`` of the Avg@k and Pass@k in ``metrics``, with or without eval/."""
    found = {}
    for name, value in metrics.items():
        short = name.removeprefix("eval/")
        if short.startswith(("avg@", "pass@")) and isinstance(value, (int, float)):
            found[short] = float(value)
    return found


def clock(seconds: float | None) -> str:
    """``75.2`` as ``0:01:15``."""
    if seconds is None:
        return "-"
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{second:02d}"


class Console:
    """Shows a run of ``total_steps`` steps. With ``enabled`` false every method does nothing.

    ``live`` None means: a live display if ``file`` (default: stdout) is a terminal.
    """

    def __init__(
        self,
        enabled: bool,
        total_steps: int,
        live: bool | None = None,
        file: TextIO | None = None,
    ) -> None:
        self.enabled = enabled
        self.total_steps = total_steps
        self._file = file if file is not None else sys.stdout
        terminal = bool(getattr(self._file, "isatty", lambda: False)())
        width = None if terminal else PLAIN_WIDTH
        self._rich = RichConsole(file=self._file, width=width, highlight=False)
        wanted = terminal if live is None else live and terminal
        self._use_live = wanted and not self._rich.is_dumb_terminal
        self._live: Live | None = None
        self._seconds: deque[float] = deque(maxlen=ETA_STEPS)
        self._rewards: deque[float] = deque(maxlen=40)
        self._last = time.monotonic()

    def header(self, title: str, facts: Mapping[str, object]) -> None:
        """A panel: algorithm, model sizes, layout, engine, prompts x group, whatever is known."""
        if not self.enabled:
            return
        table = Table.grid(padding=(0, 2))
        table.add_column(style="cyan", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in facts.items():
            table.add_row(Text(self._printable(name)), Text(self._printable(value)))
        panel = Panel(table, title=Text(self._printable(title)), title_align="left", expand=False)
        self._rich.print(panel)

    def start(self, done: int = 0) -> None:
        """Begin the live display; ``done`` steps were done before (a resumed run)."""
        self._last = time.monotonic()
        if self.enabled and self._use_live:
            self._live = Live(
                self._view(done, {}), console=self._rich, refresh_per_second=4, transient=False
            )
            self._live.start()

    def step(self, step: int, metrics: Metrics) -> None:
        """Show a finished step (1-based)."""
        if not self.enabled:
            return
        now = time.monotonic()
        self._seconds.append(now - self._last)
        self._last = now
        reward = metrics.get("reward/mean")
        if reward is not None and math.isfinite(reward):
            self._rewards.append(reward)
        if self._live is not None:
            self._live.update(self._view(step, metrics))
            if evaluations(metrics):
                self.message(f"step {step}: {self._evaluation(metrics)}")
        else:
            self._plain(self.line(step, metrics))

    def message(self, text: str) -> None:
        """One line of its own: a checkpoint saved, an evaluation begun."""
        if self.enabled:
            self._plain(text)

    def evaluation(self, step: int, metrics: Metrics) -> None:
        """One line with the Avg@k and Pass@k after ``step`` steps (0: before training)."""
        self.message(f"step {step}/{self.total_steps} | {self._evaluation(metrics)}")

    def evaluation_table(self, before: Metrics, after: Metrics) -> None:
        """Avg@k and Pass@k before, after and the change in points; a missing side is "-"."""
        if not self.enabled:
            return
        first, last = evaluations(before or {}), evaluations(after or {})
        table = Table(title="Evaluation", box=box.SIMPLE_HEAD, title_justify="left")
        table.add_column("metric")
        for column in ("before", "after", "change"):
            table.add_column(column, justify="right", no_wrap=True)
        for name in sorted(first.keys() | last.keys(), key=_by_kind_and_k):
            change = Text("-")
            if name in first and name in last:
                points = round(100 * (last[name] - first[name]), 1) + 0.0  # no -0.0
                change = Text(f"{points:+.1f} points", style="green" if points >= 0 else "red")
            table.add_row(
                name.capitalize(),
                number(first, name, ".1f", 100),
                number(last, name, ".1f", 100),
                change,
            )
        self._rich.print(table if table.row_count else "Evaluation: nothing was evaluated")

    def interrupted(self, path: Path | str | None, command: str) -> None:
        """Name the saved checkpoint and the exact command to resume (on one line, to be copied)."""
        if not self.enabled:
            return
        self.close()
        saved = f"The checkpoint is in {path}" if path else "No checkpoint was saved"
        self._plain(f"Interrupted. {saved}. To go on:\n\n    {command}\n")

    def close(self) -> None:
        """End the live display; its last state stays on the screen. May be called twice."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def __enter__(self) -> Console:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def eta(self, step: int) -> float | None:
        """Seconds left after ``step``, from the wall time of the last steps; None if unknown."""
        if not self._seconds:
            return None
        mean = sum(self._seconds) / len(self._seconds)
        return mean * max(self.total_steps - step, 0)

    def line(self, step: int, metrics: Metrics) -> str:
        """The plain line of a step."""
        parts = [
            f"step {step}/{self.total_steps}",
            f"reward {number(metrics, 'reward/mean')}",
            f"paths {paths(metrics)}",
            f"loss {losses(metrics)}",
            f"grad {number(metrics, 'grad_norm', '.3g')}",
            phases(metrics),
            f"step {number(metrics, 'time/step', '.1f')}s",
            f"{throughput(metrics)} tokens/s",
            f"eta {clock(self.eta(step))}",
        ]
        if evaluations(metrics):
            parts.append(self._evaluation(metrics))
        return " | ".join(parts)

    def _evaluation(self, metrics: Metrics) -> str:
        found = evaluations(metrics)
        names = sorted(found, key=_by_kind_and_k)
        shown = [f"{name.capitalize()} {number(found, name, '.1f', 100)}" for name in names]
        return f"eval {' '.join(shown) or '-'}"

    def _printable(self, text: object) -> str:
        """``text`` with what the stream cannot encode escaped (an ASCII-only Slurm log)."""
        encoding = getattr(self._file, "encoding", None) or "utf-8"
        return str(text).encode(encoding, "backslashreplace").decode(encoding)

    def _plain(self, text: str) -> None:
        """Text as it is: no markup, no wrapping, above the live display when there is one."""
        if self._live is not None:
            self._rich.print(Text(self._printable(text)), soft_wrap=True)
        else:
            print(self._printable(text), file=self._file, flush=True)

    def _view(self, step: int, metrics: Metrics) -> Group:
        """The live display: progress bar, then the numbers of the last step."""
        bar = Table.grid(padding=(0, 1))
        total = max(self.total_steps, 1)
        bar.add_row(
            Text(f"step {step}/{self.total_steps}", style="bold"),
            ProgressBar(total=total, completed=step, width=40),
            Text(f"{step / total:.0%}"),
            Text(f"{clock(self.eta(step))} left", style="cyan"),
        )
        if not metrics:
            return Group(bar)
        rows = Table.grid(padding=(0, 2))
        rows.add_column(style="cyan", no_wrap=True)
        rows.add_column(overflow="fold")
        rows.add_row("reward", f"{number(metrics, 'reward/mean')}  {self._sparkline()}")
        rows.add_row("paths", paths(metrics))
        rows.add_row("loss", f"{losses(metrics)}, grad {number(metrics, 'grad_norm', '.3g')}")
        rows.add_row("time", f"{phases(metrics)}, step {number(metrics, 'time/step', '.1f')}s")
        rows.add_row("tokens/s", throughput(metrics))
        return Group(bar, rows)

    def _sparkline(self) -> str:
        """The last rewards as a row of bars, lowest to highest."""
        if len(self._rewards) < 2 or self._rich.options.ascii_only:
            return ""
        low, high = min(self._rewards), max(self._rewards)
        scale = (len(SPARKS) - 1) / (high - low) if high > low else 0.0
        return "".join(SPARKS[round((reward - low) * scale)] for reward in self._rewards)


def _by_kind_and_k(name: str) -> tuple[str, int, str]:
    """Sort key: Avg before Pass, then k as a number (pass@8 before pass@32)."""
    kind, _, k = name.partition("@")
    return kind, int(k) if k.isdigit() else 0, name
