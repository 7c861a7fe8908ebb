"""What writing responses costs a step: steps with and without, alternating in one run.

    python -m benchmarks.bench_rollouts [--steps 160] [--select all] [--alternatives 5]

Trains the quickstart with ``logging.rollouts.every=4``. The step that hands its responses over and
the next one, beside which they are compressed and written, count as "with"; the other two of every
four as "without". The first twelve steps warm up. Prints medians and means of ``time/step``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

EVERY, WARM = 4, 12


def train(output: Path, steps: int, select: str, alternatives: int) -> list[dict[str, float]]:
    """Rows of metrics.jsonl."""
    settings = [
        f"output_dir={output}",
        f"train.steps={steps}",
        "evaluation.every=0",
        "evaluation.before=false",
        "evaluation.after=false",
        "checkpoint.every=0",
        "checkpoint.at_end=false",
        "checkpoint.export_hf=false",
        f"logging.rollouts.every={EVERY}",
        f"logging.rollouts.select={select}",
        f"logging.rollouts.alternatives={alternatives}",
    ]
    command = [sys.executable, "-m", "scope_megatron", "train", "configs/quickstart.yaml"]
    subprocess.run([*command, *settings], check=True, stdout=subprocess.DEVNULL)
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--select", default="some", choices=("some", "all"))
    parser.add_argument("--alternatives", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        output = Path(directory) / "run"
        rows = train(output, options.steps, options.select, options.alternatives)
        files = list((output / "rollouts").glob("*.parquet"))
        size = sum(path.stat().st_size for path in files) / len(files) / 2**10
    timed = [(int(row["step"]), row["time/step"]) for row in rows if row["step"] > WARM]
    written = [seconds for step, seconds in timed if step % EVERY in (0, 1)]
    plain = [seconds for step, seconds in timed if step % EVERY not in (0, 1)]
    print(f"{len(files)} files of {size:.0f} KiB, select={options.select}")
    for name, values in (("with", written), ("without", plain)):
        print(
            f"{name:8} {len(values):4} steps  median {statistics.median(values):.4f} s  "
            f"mean {statistics.mean(values):.4f} s"
        )
    change = statistics.median(written) / statistics.median(plain) - 1
    print(f"difference of the medians {100 * change:+.2f} %")


if __name__ == "__main__":
    main()
