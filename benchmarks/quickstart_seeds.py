"""The quickstart over seeds and algorithms: the same student, teacher, problems and steps.

    python benchmarks/quickstart_seeds.py --seeds 1,2,3 --algorithms scope,opd,grpo

Each run is `scope-megatron train configs/quickstart.yaml` with another seed (order of the prompts,
sampling) and algorithm; about a minute and a half each on two cores.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]


def run(algorithm: str, seed: int, output: Path, extra: list[str]) -> dict[str, float]:
    """One whole run; accuracies before and after in percent, and wall seconds with start-up."""
    command = [sys.executable, "-m", "scope_megatron", "train", "configs/quickstart.yaml"]
    settings = [f"algorithm.name={algorithm}", f"seed={seed}", f"output_dir={output}"]
    started = time.perf_counter()
    subprocess.run(
        [*command, *settings, *extra], cwd=ROOT, check=True, stdout=subprocess.DEVNULL, timeout=1800
    )
    seconds = time.perf_counter() - started
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    before, *_, after = (row for row in rows if "eval/avg@8" in row)
    return {
        "before": 100 * before["eval/avg@8"],
        "after": 100 * after["eval/avg@8"],
        "pass_before": 100 * before["eval/pass@8"],
        "pass_after": 100 * after["eval/pass@8"],
        "seconds": seconds,
    }


def main(
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas.")] = "1,2,3",
    algorithms: Annotated[str, typer.Option(help="Algorithms, separated by commas.")] = "scope",
    override: Annotated[list[str] | None, typer.Argument(help="More key=value settings.")] = None,
) -> None:
    """Print a row per run and the mean of each algorithm."""
    table = Table("algorithm", "seed", "Avg@8 before", "after", "gain", "Pass@8", "wall s")
    with tempfile.TemporaryDirectory(prefix="quickstart-seeds-") as name:
        for algorithm in algorithms.split(","):
            gains = []
            for seed in map(int, seeds.split(",")):
                r = run(algorithm, seed, Path(name) / f"{algorithm}-{seed}", override or [])
                gains.append(r["after"] - r["before"])
                table.add_row(
                    algorithm,
                    str(seed),
                    f"{r['before']:.1f}",
                    f"{r['after']:.1f}",
                    f"{gains[-1]:+.1f}",
                    f"{r['pass_before']:.1f} -> {r['pass_after']:.1f}",
                    f"{r['seconds']:.0f}",
                )
            table.add_row(algorithm, "mean", "", "", f"{sum(gains) / len(gains):+.1f}", "", "")
    Console(width=100).print(table)


if __name__ == "__main__":
    typer.run(main)
