"""The run of `make quickstart` on this machine, by its own command: on GPUs in bfloat16."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from launch.code import ROOT
from tools.proof.record import Proof

NO_EVALUATION = ("evaluation.before=false", "evaluation.after=false", "evaluation.every=0")
ONE_RANK = ("parallel.tensor=1", "parallel.data=1")
TOY = (*NO_EVALUATION, *ONE_RANK, "train.steps=2", "rollout.prompts_per_step=4")


def quickstart(proof: Proof) -> None:
    """It ends well, has saved and exported, and the student has learnt."""
    run = proof.folder / "run"
    rows = _train(proof, run, *proof.size((), TOY))
    if rows is None:
        return
    proof.check("exported models", len(list((run / "hf").glob("*.safetensors"))), at_least=1)
    proof.check("checkpoints", len(list((run / "checkpoints").iterdir())), at_least=1)
    ratings = [100 * row["eval/avg@8"] for row in rows if "eval/avg@8" in row]
    if ratings:
        proof.figure("Avg@8 before", ratings[0])
        proof.figure("Avg@8 after", ratings[-1])
        proof.check("gain in Avg@8", ratings[-1] - ratings[0], at_least=15, unit="points")
    steps = sorted(row["time/step"] for row in rows if "time/step" in row)
    proof.check("steps", len(steps), at_least=proof.size(60, 2))
    proof.figure("a step, median", steps[len(steps) // 2], "s")
    gaps = [row["mismatch/mean_abs_prob"] for row in rows if "mismatch/mean_abs_prob" in row]
    mean = sum(gaps) / len(gaps) if gaps else float("nan")
    proof.check("engine against trainer, probabilities, mean difference", mean, at_most=0.01)
    if gaps:
        proof.figure("the same, worst step", max(gaps))


def _train(proof: Proof, run: Path, *changes: str) -> list[dict[str, float]] | None:
    """The rows of the run's metrics; None where it failed."""
    command = [sys.executable, "-m", "scope_megatron", "train", "configs/quickstart.yaml"]
    command += [f"output_dir={run}", "logging.progress=false", *changes]
    start = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(done.stdout[-4000:], done.stderr[-4000:], sep="\n")
    proof.figure(f"{run.name}: from command to end", time.perf_counter() - start, "s")
    proof.check(f"{run.name}: exit status", done.returncode, at_most=0)
    if done.returncode:
        reason = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        proof.note(f"{run.name}: it said", " ".join(reason)[:300])
        return None
    rows = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in rows]
