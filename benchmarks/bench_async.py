"""Engines on the training ranks against engines on ranks of their own: lag 0, carry-over, lag 1.

    python -m benchmarks.bench_async [--rounds 7] [--limit 192] [--prompts 16]

On two cores with one rank each: colocated, two replicas that train and sample by turns; separate, a
rank that trains and one that samples. They take turns in one run; medians. Then a SIMULATION: the
same phases, fitted to what was measured, on 8 to 1,024 GPUs as fast as a core of this machine.

Hidden shares are the metrics ``overlap/``, as ``scope_megatron/logging/overlap.py`` defines them.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.lengths import Lengths, length_of
from benchmarks.rounds import Contestant, Figures, compete

ROOT = Path(__file__).resolve().parents[1]
SEPARATE = ("parallel.data=1", "rollout.placement=separate", "rollout.ranks=1")
CARRIED = 0.25  # of a step's groups, at most, into the next one
PLACEMENTS = {
    "colocated": ("parallel.data=2",),
    "lag 0": SEPARATE,
    "carry over": (*SEPARATE, f"rollout.carry_over={CARRIED}"),
    "lag 1": (*SEPARATE, "rollout.lag=1"),
}
GPUS = (8, 16, 32, 64, 128, 256, 512, 1024)
SLOTS = 256  # sequences that an engine decodes at once


def settings(options: argparse.Namespace, output: Path) -> list[str]:
    return [
        f"output_dir={output}",
        "platform.device=cpu",
        "parallel.tensor=1",
        f"rollout.prompts_per_step={options.prompts}",
        f"rollout.max_response_tokens={options.limit}",
        "rollout.engine.check_samples=0",
        f"train.microbatch_tokens={max(4096, options.limit + 32)}",
        "train.steps=100000",
        "evaluation.every=0",
        "evaluation.before=false",
        "evaluation.after=false",
        "checkpoint.every=0",
        "logging.rollouts.every=0",
        "logging.tensorboard=false",
    ]


def measure(options: argparse.Namespace, lengths: Lengths) -> dict[str, Figures]:
    """Medians by placement."""
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory)
        contestants = [
            Contestant(
                name,
                "benchmarks.worker_async",
                [
                    str(ROOT / "configs/quickstart.yaml"),
                    lengths,
                    *settings(options, log / name.replace(" ", "_")),
                    *placement,
                ],
                2,
                log,
            )
            for name, placement in PLACEMENTS.items()
        ]
        return compete(contestants, options.rounds, options.warm, log)


@dataclass(frozen=True)
class Costs:
    """Seconds on one rank, fitted to a run at lag 0 of one rank of each kind."""

    decode_step: float  # one token of every running sequence: what does not depend on their number
    token: float  # of each of them
    learn: float  # scoring and training, per response token
    fixed: float  # of a step, whatever its size


def fit(equal: Figures, long: Figures, options: argparse.Namespace) -> Costs:
    """Two measured batches, two unknowns for sampling: decoding steps and tokens."""
    count = options.prompts * 8
    lengths = [sorted(batch(kind, options.limit, count)) for kind in ("equal", "long")]
    steps = [decoding_steps(each, 1) for each in lengths]
    tokens = [sum(each) for each in lengths]
    seconds = [equal["sampling/engine_s"], long["sampling/engine_s"]]
    determinant = steps[0] * tokens[1] - steps[1] * tokens[0]
    a = (seconds[0] * tokens[1] - seconds[1] * tokens[0]) / determinant
    b = (steps[0] * seconds[1] - steps[1] * seconds[0]) / determinant
    rest = [
        found["time/step"] - found["sampling/engine_s"] - found["time/sync"]
        for found in (equal, long)
    ]
    learn = max(1e-9, (rest[0] - rest[1]) / (tokens[0] - tokens[1]))
    return Costs(max(a, 0.0), max(b, 0.0), learn, max(0.0, rest[0] - learn * tokens[0]))


def batch(kind: Lengths, limit: int, count: int) -> list[int]:
    return [length_of(kind, limit, 1, position) or limit for position in range(count)]


def decoding_steps(lengths: list[int], engines: int) -> int:
    """Of the slowest engine, which takes every n-th sequence, SLOTS at once."""
    slowest = 0
    for engine in range(engines):
        ends = [0] * SLOTS
        for length in lengths[engine::engines]:
            first = ends.index(min(ends))
            ends[first] += length
        slowest = max(slowest, max(ends))
    return slowest


def simulate(costs: Costs, lengths: list[int], gpus: int) -> dict[str, tuple[float, int]]:
    """Seconds of a step and engines by placement; the best split of the ranks by eighths."""
    tokens = sum(lengths)

    def sampling(engines: int) -> float:
        steps = decoding_steps(lengths, min(engines, len(lengths)))
        return costs.decode_step * steps + costs.token * tokens / engines

    def learning(ranks: int) -> float:
        return costs.fixed + costs.learn * tokens / ranks

    splits = [gpus * eighths // 8 for eighths in range(1, 8)]
    apart = {engines: (sampling(engines), learning(gpus - engines)) for engines in splits}
    return {
        "colocated": (sampling(gpus) + learning(gpus), gpus),
        "lag 0": min((s + t, engines) for engines, (s, t) in apart.items()),
        "lag 1": min((max(s, t), engines) for engines, (s, t) in apart.items()),
    }


def print_simulation(costs: Costs, options: argparse.Namespace) -> None:
    print(
        f"\nSIMULATION from the measured costs: {costs.decode_step * 1e3:.3f} ms per decoding "
        f"step, {costs.token * 1e6:.1f} us per token sampled, {costs.learn * 1e6:.1f} us per token "
        f"learnt, {costs.fixed:.2f} s per step; {options.responses} responses"
    )
    print("| GPUs | lengths | colocated s | lag 0 s (engines) | lag 1 s (engines) | best |")
    print("|---|---|---|---|---|---|")
    for kind in ("equal", "long"):
        lengths = batch(kind, options.limit, options.responses)
        for gpus in GPUS:
            found = simulate(costs, lengths, gpus)
            best = min(found, key=lambda name: found[name][0])
            cells = [f"{found['colocated'][0]:.2f}"]
            cells += [f"{found[n][0]:.2f} ({found[n][1]})" for n in ("lag 0", "lag 1")]
            print(f"| {gpus} | {kind} | {' | '.join(cells)} | {best} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--warm", type=int, default=2)
    parser.add_argument("--limit", type=int, default=192, help="longest response")
    parser.add_argument("--prompts", type=int, default=16, help="with 8 responses each")
    parser.add_argument("--responses", type=int, default=8192, help="of the simulated step")
    options = parser.parse_args()
    measured = {}
    for kind in ("equal", "long"):
        print(f"--- {kind} lengths, up to {options.limit} tokens")
        measured[kind] = measure(options, kind)
        step = {name: found["time/step"] for name, found in measured[kind].items()}
        ahead, streamed = measured[kind]["lag 1"], measured[kind]["lag 0"]
        print(
            f"colocated {step['colocated']:.3f} s, lag 0 {step['lag 0']:.3f}, "
            f"lag 1 {step['lag 1']:.3f}; hidden at lag 1 "
            f"{ahead['overlap/sampling_hidden']:.0%} of the shorter phase; at lag 0 "
            f"{streamed['overlap/teacher_hidden']:.0%} of the teacher, "
            f"{streamed['overlap/grading_hidden']:.0%} of the verifiers"
        )
        carry = measured[kind]["carry over"]
        print(
            f"lag 0 with carry_over {CARRIED}: {step['carry over']:.3f} s, "
            f"{carry['sampling/left']:.0%} of the groups left for the next step, "
            f"{carry['sampling/tail_s']:.3f} s of waiting for them"
        )
    costs = fit(measured["equal"]["lag 0"], measured["long"]["lag 0"], options)
    print_simulation(costs, options)


if __name__ == "__main__":
    main()
