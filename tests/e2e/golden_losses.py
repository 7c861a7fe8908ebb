"""Ten steps of the quickstart on two CPU ranks, as text: what a refactor must not change.

`python -m tests.e2e.golden_losses [LAYOUT ...]` writes tests/golden/losses.txt anew, all of it or
some layouts. Do that only when the numbers are meant to change, and say in the commit why they do.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from scope_megatron.config import load_config
from tests.support.forked import run_command
from tests.support.harness import ENGINES_TOO

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests/golden/losses.txt"
STEPS = 10
WITHIN_S = 240.0  # of one run; 60 on a machine that does nothing else
LAYOUTS = {
    "tensor2": ("parallel.tensor=2", "parallel.pipeline=1"),
    "pipeline2": ("parallel.tensor=1", "parallel.pipeline=2"),
    "data2": ("parallel.tensor=1", "parallel.pipeline=1", "parallel.data=2"),
}
APART = {  # an engine on a rank of its own
    "lag1": (
        *("parallel.tensor=1", "parallel.data=1", "rollout.placement=separate"),
        *("rollout.ranks=1", "rollout.lag=1"),
    ),
}
COLUMNS = ("loss/total", "loss/mle", "loss/kl", "grad_norm", "reward/mean")
SETTINGS = (
    f"train.steps={STEPS}",
    "objective.old_logprobs=recompute",
    "evaluation.before=false",
    "evaluation.after=false",
    "evaluation.every=0",
    "checkpoint.every=0",
    "checkpoint.at_end=false",
    "checkpoint.export_hf=false",
    "logging.tensorboard=false",
)
Row = dict[str, float]


def run(layout: str, output: Path, *more: str) -> list[Row]:
    """The metrics named by COLUMNS of each step, by the command; ``more``: further settings."""
    settings = (f"output_dir={output}", *SETTINGS, *(LAYOUTS | APART)[layout], *more)
    config = load_config(ROOT / "configs/quickstart.yaml", list(settings))
    log = output.with_name(f"{output.name}.log")
    arguments = ["train", "configs/quickstart.yaml", *settings]
    codes, text = run_command(arguments, config.world_size, log, WITHIN_S)
    if any(code != 0 for code in codes):
        raise RuntimeError(f"{layout}: its ranks ended with {codes}:\n{text}")
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{name: row[name] for name in COLUMNS} for row in rows if "reward/mean" in row]


def processor() -> str:
    """The processor's model name: other models round sums in another order."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def to_text(rows: dict[str, list[Row]]) -> str:
    """One line per layout and step, eight significant digits."""
    lines = [f"# processor: {processor()}", "# " + " ".join(("layout", "step", *COLUMNS))]
    for layout, steps in rows.items():
        for number, row in enumerate(steps, 1):
            lines.append(f"{layout} {number} " + " ".join(f"{row[name]:.8g}" for name in COLUMNS))
    return "\n".join(lines) + "\n"


def read() -> tuple[str, dict[str, list[Row]]]:
    """(processor that wrote the file, layout -> a row per step)."""
    first, _, *lines = GOLDEN.read_text().splitlines()
    rows: dict[str, list[Row]] = {}
    for line in lines:
        layout, _, *values = line.split()
        rows.setdefault(layout, []).append(dict(zip(COLUMNS, map(float, values), strict=True)))
    return first.removeprefix("# processor: "), rows


def main() -> None:
    written_on, rows = read()
    os.environ[ENGINES_TOO] = "1"
    chosen = sys.argv[1:] or [*LAYOUTS, *APART]
    if written_on != processor() and {*rows} - {*chosen}:
        raise SystemExit(f"{GOLDEN} was written on a {written_on}: write all layouts on this one")
    with TemporaryDirectory() as directory:
        for layout in chosen:
            rows[layout] = run(layout, Path(directory) / layout)
    GOLDEN.write_text(to_text(rows))


if __name__ == "__main__":
    main()
