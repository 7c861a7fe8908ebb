"""Steps of the algorithms beside each other, on the same work, in turns.

    python -m benchmarks.bench_step [--lengths equal|long] [--limit 256] [--rounds 9]
    python -m benchmarks.bench_step --ranks 2 --contestants scope,naive --lengths long

Random models (4 M student, 13 M teacher: 3.2 times the arithmetic per token), prescribed lengths,
every second response of a group correct. ``naive`` is scope with the teacher over all responses, a
student pass of its own, and responses trained where they were sampled, packed like the rest;
``padded`` is naive with every sequence as long as the longest. ``ungraded`` is scope without its
verifier (random responses of prescribed verdicts: grading is all that it leaves out).
Arithmetic's own ratio of scope to grpo without KL is (S + 3F + T) / (S + 3F), with sampling S, the
student's forward F over all responses and the teacher's T over the incorrect ones, each timed in
the same run. Medians over the rounds, in seconds; a step is its slowest rank's.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from benchmarks.models import STUDENT, TEACHER, random_llama
from benchmarks.rounds import ROOT, Contestant, Figures, compete

WARM = 2
SETTINGS = {
    "scope": ["algorithm.name=scope"],
    "naive": ["algorithm.name=scope", "objective.old_logprobs=recompute"],
    "padded": [
        "algorithm.name=scope",
        "objective.old_logprobs=recompute",
        "rollout.engine.logprob_tolerance=100",  # its tokens in front do change the scores
    ],
    "ungraded": ["algorithm.name=scope"],
    "grpo": ["algorithm.name=grpo", "algorithm.kl_coef=0"],
    "grpo-kl": ["algorithm.name=grpo", "algorithm.kl_coef=0.01"],
    "opd": ["algorithm.name=opd"],
}
FLAGS = {"naive": ",naive", "padded": ",naive,padded", "ungraded": ",ungraded"}


def main() -> None:
    options = arguments()
    options.forwards = {"scope", "grpo"} <= set(options.contestants)
    with tempfile.TemporaryDirectory(prefix="bench-step-") as name:
        folder = Path(name)
        student = options.student or random_llama(folder / "student", *STUDENT)
        teacher = options.teacher or random_llama(folder / "teacher", *TEACHER)
        contestants = [
            contestant(name, options, student, teacher, folder) for name in options.contestants
        ]
        found = compete(contestants, options.rounds, WARM, folder)
    print(json.dumps({"lengths": options.lengths, "ranks": options.ranks, **ratios(found)}))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--lengths", choices=["natural", "equal", "long"], default="equal")
    parser.add_argument("--limit", type=int, default=256, help="longest response, tokens")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--ranks", type=int, default=1, help="data-parallel ranks of each")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--student", type=Path, help="instead of the random 4 M")
    parser.add_argument("--teacher", type=Path, help="instead of the random 13 M")
    parser.add_argument(
        "--contestants",
        type=lambda text: text.split(","),
        default=["scope", "grpo", "grpo-kl", "opd"],
        help=f"of {', '.join(SETTINGS)}",
    )
    return parser.parse_args()


def contestant(
    name: str, options: argparse.Namespace, student: Path, teacher: Path, folder: Path
) -> Contestant:
    settings = [
        *SETTINGS[name],
        "parallel.tensor=1",
        f"parallel.data={options.ranks}",
        "data.shuffle=false",
        f"model.student={student}",
        "model.teacher=null" if name.startswith("grpo") else f"model.teacher={teacher}",
        "data.max_prompt_tokens=64",
        "evaluation.every=0",
        "evaluation.before=false",
        "evaluation.after=false",
        f"rollout.prompts_per_step={options.prompts}",
        f"rollout.group_size={options.samples}",
        f"rollout.max_response_tokens={options.limit}",
        f"output_dir={folder / name}",
    ]
    flags = "half" + FLAGS.get(name, "") + (",forwards" if options.forwards else "")
    arguments = [str(ROOT / "configs/quickstart.yaml"), f"{options.lengths},{flags}", *settings]
    return Contestant(name, "benchmarks.worker_scope", arguments, options.ranks, folder)


def ratios(found: dict[str, Figures]) -> dict[str, float]:
    """What is asked of the figures, each where its contestants took part."""
    step = {name: figures["step"] for name, figures in found.items()}
    told = {}
    if {"scope", "grpo"} <= set(found):
        scope = found["scope"]
        sampled_and_trained = scope["rollout"] + 3 * scope["student forward"]
        arithmetic = (sampled_and_trained + scope["teacher forward"]) / sampled_and_trained
        told |= {
            "scope over grpo": step["scope"] / step["grpo"],
            "arithmetic's": arithmetic,
            "over arithmetic's": step["scope"] / step["grpo"] / arithmetic,
        }
    if {"scope", "grpo-kl"} <= set(found):
        told["scope over grpo with KL"] = step["scope"] / step["grpo-kl"]
    for other in {"naive", "padded", "ungraded"} & set(found) if "scope" in found else set():
        told[f"{other} over scope"] = step[other] / step["scope"]
    return {name: round(value, 3) for name, value in told.items()}


if __name__ == "__main__":
    main()
