"""Training over the bare matrix products of the same shapes.

    python tools/make_smollm2.py --out runs/smollm2 --student-layers 25
    python -m benchmarks.bench_products --student runs/smollm2/student \
        --teacher runs/smollm2/teacher

One rank; exact reverse KL on 32 responses of 48 tokens. After every step the products of its
training (the student's forward and both gradients, the teacher's forward, both output heads) are
timed alone, by torch on the same thread. Training is the phases ``score`` and ``train`` together:
the teacher, forward, backward and the optimizer. Medians over the rounds, in seconds.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from benchmarks.rounds import ROOT, Contestant, compete

WARM = 1


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory(prefix="bench-products-") as name:
        folder = Path(name)
        found = compete([contestant(options, folder)], options.rounds, WARM, folder)["opd"]
    training = found["score"] + found["train"]
    told = {"training": training, "products": found["products"]}
    told["training over products"] = training / found["products"]
    print(json.dumps({name: round(value, 3) for name, value in told.items()}))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--student", type=Path, default=ROOT / "assets/tiny-student")
    parser.add_argument("--teacher", type=Path, default=ROOT / "assets/tiny-teacher")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--limit", type=int, default=48, help="tokens of each response")
    return parser.parse_args()


def contestant(options: argparse.Namespace, folder: Path) -> Contestant:
    settings = [
        "algorithm.name=opd",
        "objective.kl=reverse_kl",
        "parallel.tensor=1",
        f"model.student={options.student}",
        f"model.teacher={options.teacher}",
        "evaluation.every=0",
        "evaluation.before=false",
        "evaluation.after=false",
        "data.max_prompt_tokens=64",
        f"rollout.prompts_per_step={options.prompts}",
        "rollout.group_size=8",
        f"rollout.max_response_tokens={options.limit}",
        f"output_dir={folder / 'run'}",
    ]
    config = str(ROOT / "configs/quickstart.yaml")
    arguments = [config, "equal,products", *settings]
    return Contestant("opd", "benchmarks.worker_scope", arguments, 1, folder)


if __name__ == "__main__":
    main()
