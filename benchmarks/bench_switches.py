"""Ten steps of the quickstart with each switch, and the last five again after a resume.

    python -m benchmarks.bench_switches [--out build/switches] [--jobs 2] [NAME ...]

A line per switch: the command's exit, whether every loss and gradient norm is finite, the terms of
the loss at the first and the last step, how far its losses are from those without a switch (0: it
did nothing), and whether the run resumed from step 5 repeats the steps 6 to 10 digit for digit. A
run that is there already (same --out) is not made again. On the CPU; SCOPE_DEVICE=cuda: on a GPU.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.ready import run_command

PLAIN = "none"
NO_REFERENCE = "algorithm.kl_coef=0"
# name: overrides of configs/quickstart.yaml
SWITCHES: dict[str, tuple[str, ...]] = {
    PLAIN: (),
    "reference": ("objective.preset=reference_code", "verifier.name=auto"),
    "no-teacher": ("objective.incorrect=constant",),
    "correct-alone": ("objective.incorrect=none",),
    "no-teacher-unlikely": ("objective.incorrect=constant", "objective.constant_below=0.2"),
    "kdrl": ("algorithm.name=kdrl", "algorithm.teacher_coef=0.1"),
    "rlsd": ("algorithm.name=rlsd",),
    "sdar": ("algorithm.name=sdar", "algorithm.teacher_coef=0.1"),
    "srpo": ("algorithm.name=srpo",),
    "group-filter": ("algorithm.group_filter=mixed",),
    "dapo": (
        "algorithm.name=grpo",
        NO_REFERENCE,
        "algorithm.group_filter=mixed",
        "algorithm.clip_high=0.28",
        "algorithm.overlong_buffer=48",
        "train.updates_per_batch=2",
    ),
    "iw-opd": ("algorithm.name=opd", "rollout.group_size=8", "objective.iw_gamma=0.5"),
    "batch-weights": ("objective.weight_group=batch",),
    "reversed": ("objective.student_weight=reversed", "objective.teacher_weight=reversed"),
    "prefix": ("objective.prefix_tokens=8",),
    "exopd": ("algorithm.name=opd", "rollout.group_size=8", "objective.extrapolation=1.25"),
    "opsd": (
        "algorithm.name=opd",
        "rollout.group_size=8",
        "teacher={source: student, privileged: ' {answer}'}",
    ),
    "paced": ("algorithm.pass_rate_alpha=1", "algorithm.pass_rate_beta=1"),
    "entropy-kl": ("objective.kl=entropy_kl", "objective.entropy_threshold=0.3"),
    **{
        f"topk-{of}": ("objective.kl=topk", "objective.topk=8", f"objective.topk_of={of}", *tail)
        for of, tail in (
            ("student", ()),
            ("union", ("objective.topk_tail=true",)),
            ("intersection", ("objective.topk_tail=true",)),
        )
    },
}
COMMON = (
    "train.steps=10",
    "checkpoint.every=5",
    "checkpoint.at_end=false",
    "checkpoint.export_hf=false",
    "parallel.tensor=1",
    "parallel.data=1",
    "rollout.prompts_per_step=8",
    "evaluation.before=false",
    "evaluation.after=false",
    "evaluation.every=0",
    "logging.tensorboard=false",
)
Row = dict[str, Any]


def train(output: Path, overrides: tuple[str, ...]) -> list[Row]:
    """The rows of metrics.jsonl of a run's steps; raises RuntimeError where it fails."""
    log = output.with_suffix(".log")
    if not (output / "done").exists():
        shutil.rmtree(output, ignore_errors=True)
        log.unlink(missing_ok=True)
        settings = [*COMMON, *overrides, f"output_dir={output}"]
        device = os.environ.get("SCOPE_DEVICE", "cpu")
        code = run_command(["train", "configs/quickstart.yaml", *settings], log, 600, device)
        if code:
            raise RuntimeError(f"exit {code}: {log.read_text()[-600:]}")
        (output / "done").touch()
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "loss/total" in row]


def numbers(row: Row) -> Row:
    """Of the update: what does not tell the time."""
    return {k: v for k, v in row.items() if k.startswith(("loss/", "grad_norm", "reward/"))}


def report(name: str, out: Path, plain: list[Row] | None) -> str:
    """One line on a switch."""
    rows = train(out / name, SWITCHES[name])
    again = train(
        out / f"{name}-resumed",
        (*SWITCHES[name], f"resume={out / name}/checkpoints/step_00000005"),
    )
    values = [v for row in rows for v in numbers(row).values()]
    finite = all(map(math.isfinite, values)) and not any("update/skipped" in row for row in rows)
    first, last = (
        " ".join(f"{k[5:]} {v:.4f}" for k, v in row.items() if k.startswith("loss/"))
        for row in (rows[0], rows[-1])
    )
    moved = "-"
    if plain:
        pairs = zip(rows, plain, strict=True)
        moved = f"{max(abs(a['loss/total'] - b['loss/total']) for a, b in pairs):.4f}"
    same = [numbers(row) for row in again] == [numbers(row) for row in rows[5:]]
    return (
        f"{name}: {len(rows)} steps, {'finite' if finite else 'NOT FINITE'}; step 1: {first}; "
        f"step {len(rows)}: {last}; grad_norm {rows[0]['grad_norm']:.3f} to "
        f"{rows[-1]['grad_norm']:.3f}; reward {rows[0]['reward/mean']:.2f} to "
        f"{rows[-1]['reward/mean']:.2f}; from plain {moved}; resumed "
        f"{'identical' if same and len(again) == 5 else 'DIFFERS'}"
    )


def tried(name: str, out: Path, plain: list[Row] | None) -> str:
    """The line, or why there is none."""
    try:
        return report(name, out, plain)
    except (RuntimeError, TimeoutError) as error:
        return f"{name}: FAILED {error}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", default=list(SWITCHES))
    parser.add_argument("--out", type=Path, default=Path("build/switches"))
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side")
    options = parser.parse_args()
    out = options.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    names = [name for name in options.names if name != PLAIN]
    print(tried(PLAIN, out, None), flush=True)
    plain = train(out / PLAIN, ())
    with ThreadPoolExecutor(options.jobs) as pool:
        for line in pool.map(lambda name: tried(name, out, plain), names):
            print(line, flush=True)


if __name__ == "__main__":
    main()
