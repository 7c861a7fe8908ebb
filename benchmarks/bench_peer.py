"""This project's step beside TRL's, on the same work, in turns.

    python -m benchmarks.bench_peer [--lengths natural|equal|long] [--limit 64] [--rounds 15]
        [--random | --student DIR --teacher DIR --rows FILE --prompts 32 --samples 8]

On-policy distillation with exact reverse KL from the same models, prompts, numbers of responses and
prescribed lengths, one update per batch, two processes each. TRL (its DistillationTrainer, with
Hugging Face's generate, which is its faster way here) comes with accelerate from the package index
into ``--environment`` and stands on this environment's torch and transformers. Medians over the
rounds, in seconds; a step is its slowest rank's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.models import STUDENT, TEACHER, random_llama
from benchmarks.rounds import ROOT, Contestant, compete

PEER = ["trl==1.16.0", "accelerate==1.15.0"]
WARM = 5  # as many transfers as this project checks at its start


def main() -> None:
    options = arguments()
    install(options.environment)
    with tempfile.TemporaryDirectory(prefix="bench-peer-") as name:
        folder = Path(name) if options.logs is None else options.logs
        folder.mkdir(exist_ok=True, parents=True)
        if options.random:
            options.student = random_llama(folder / "student", *STUDENT)
            options.teacher = random_llama(folder / "teacher", *TEACHER)
        contestants = [scope(options, folder), trl(options, folder)]
        found = compete(contestants, options.rounds, WARM, folder)
    ratios = sorted(
        a["step"] / b["step"]
        for a, b in zip(contestants[0].steps, contestants[1].steps, strict=True)
    )
    print(
        json.dumps(
            {
                "lengths": options.lengths,
                "step over TRL's": round(found["scope"]["step"] / found["trl"]["step"], 3),
                "rounds": [round(r, 2) for r in ratios],
            }
        )
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--lengths", choices=["natural", "equal", "long"], default="natural")
    parser.add_argument("--limit", type=int, default=64, help="longest response, tokens")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--accumulate", type=int, default=2, help="TRL's gradient accumulation")
    parser.add_argument("--student", type=Path, default=ROOT / "assets/tiny-student")
    parser.add_argument("--teacher", type=Path, default=ROOT / "assets/tiny-teacher")
    parser.add_argument("--random", action="store_true", help="random models of 4 M and 13 M")
    parser.add_argument("--rows", type=Path, default=ROOT / "assets/arithmetic/train.jsonl")
    parser.add_argument("--pack", type=int, default=4096, help="train.microbatch_tokens")
    parser.add_argument("--environment", type=Path, default=ROOT / "runs/bench_peer")
    parser.add_argument("--logs", type=Path, help="keep the processes' output here")
    return parser.parse_args()


def install(folder: Path) -> None:
    """TRL and accelerate alone: everything below them is this environment's."""
    if not (folder / "trl").is_dir():
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "-q", "--no-deps"]
            + ["--target", str(folder), *PEER],
            check=True,
        )


def scope(options: argparse.Namespace, log: Path) -> Contestant:
    settings = [
        "algorithm.name=opd",
        "objective.kl=reverse_kl",
        "parallel.tensor=1",
        "parallel.data=2",
        "data.shuffle=false",
        f"model.student={options.student}",
        f"model.teacher={options.teacher}",
        f"data.train={options.rows}",
        "evaluation.every=0",
        "evaluation.before=false",
        "evaluation.after=false",
        "data.max_prompt_tokens=64",
        f"rollout.prompts_per_step={options.prompts}",
        f"rollout.group_size={options.samples}",
        f"rollout.max_response_tokens={options.limit}",
        f"optimizer.lr={options.lr}",
        f"train.microbatch_tokens={options.pack}",
        f"output_dir={log / 'run'}",
    ]
    config = str(ROOT / "configs/quickstart.yaml")
    arguments = [config, options.lengths, *settings]
    return Contestant("scope", "benchmarks.worker_scope", arguments, 2, log)


def trl(options: argparse.Namespace, log: Path) -> Contestant:
    wanted = {
        "steps": options.rounds + WARM + 1,
        "prompts": options.prompts,
        "samples": options.samples,
        "ranks": 2,
        "lengths": options.lengths,
        "limit": options.limit,
        "lr": options.lr,
        "accumulate": options.accumulate,
    }
    arguments = [*map(str, (options.student, options.teacher, options.rows)), json.dumps(wanted)]
    path = {"PYTHONPATH": f"{ROOT}:{options.environment}"}
    return Contestant("trl", "benchmarks.worker_trl", arguments, 2, log, path)


if __name__ == "__main__":
    main()
