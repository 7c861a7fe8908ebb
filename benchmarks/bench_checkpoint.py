"""Cost of a checkpoint to a training step: synchronous against asynchronous, in one run.

    python benchmarks/bench_checkpoint.py --ranks 2 --layers 8 --hidden 512

A student with random weights and a filled optimizer is saved in turn in both ways. Printed: the
seconds that the step waits (the slowest rank's, median over the saves), until the checkpoint is
whole on disk, and what a computation beside the background write takes longer.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a script's own folder is not enough

from tests.support.harness import run_distributed_test
from tests.support.training_state import training_state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ranks", type=int, default=1, help="tensor-parallel ranks")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--saves", type=int, default=5, help="of each kind; one more warms up")
    parser.add_argument("--directory", type=Path, help="where to write; default: temporary")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory, prefix="bench-checkpoint-") as name:
        results = run_distributed_test(
            measure, options.ranks, Path(name), options.layers, options.hidden, options.saves
        )
    print(json.dumps({"ranks": options.ranks, "cores": os.cpu_count(), **results[0]}, indent=1))


def measure(
    rank: int, world_size: int, root: Path, layers: int, hidden: int, saves: int
) -> dict[str, Any]:
    """Rank 0's table; every rank saves."""
    from scope_megatron.config import CheckpointConfig
    from scope_megatron.parallel import platform

    platform.initialize()
    from scope_megatron.checkpoint.saver import Saver

    state = training_state(world_size, layers, hidden)
    saver = Saver(state, root, CheckpointConfig(keep=1), print)
    waits: dict[str, list[float]] = {"synchronous": [], "asynchronous": []}
    totals: dict[str, list[float]] = {"synchronous": [], "asynchronous": []}
    alone, beside = [], []
    for save in range(saves + 1):
        for kind, background in (("synchronous", False), ("asynchronous", True)):
            step = 2 * save + background + 1
            dist.barrier()
            start = time.perf_counter()
            saver.save(step, {}, background=background)
            wait = slowest(time.perf_counter() - start)
            if background:
                beside.append(computation())
            saver.wait()
            total = slowest(time.perf_counter() - start)
            assert saver.saved_step == step
            waits[kind].append(wait)
            totals[kind].append(total)
        alone.append(computation())
    size = sum(f.stat().st_size for f in next((root / "checkpoints").glob("step_*")).iterdir())
    median = {kind: statistics.median(values[1:]) for kind, values in waits.items()}
    return {
        "checkpoint_mb": round(size / 1e6, 1),
        "step_waits_s": {kind: round(value, 4) for kind, value in median.items()},
        "step_waits_s_each": {k: [round(v, 4) for v in values[1:]] for k, values in waits.items()},
        "on_disk_after_s": {k: round(statistics.median(v[1:]), 3) for k, v in totals.items()},
        "first_asynchronous_wait_s": round(waits["asynchronous"][0], 4),
        "ratio": round(median["asynchronous"] / median["synchronous"], 4),
        "computation_s": {
            "alone": round(statistics.median(alone[1:]), 4),
            "beside_the_write": round(statistics.median(beside[1:]), 4),
        },
    }


def computation() -> float:
    """Seconds of a fixed piece of work on this rank's core, as long as a write takes."""
    matrix = torch.randn(512, 512)
    start = time.perf_counter()
    for _ in range(40):
        matrix = torch.nn.functional.normalize(matrix @ matrix)
    return time.perf_counter() - start


def slowest(seconds: float) -> float:
    from scope_megatron.parallel.agree import all_max

    return all_max([seconds])[0]


if __name__ == "__main__":
    main()
