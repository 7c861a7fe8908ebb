"""How evenly a step's arithmetic lies on the replicas, and how much of a pack is padding.

    python -m benchmarks.bench_balance [--data 4] [--limit 12288] [--microbatch 16384]

Deals and packs batches as a step does, with long-tailed lengths and half of the responses
incorrect; no model runs. Beside it what happens without a deal: each prompt's group stays where it
was sampled.
"""

from __future__ import annotations

import argparse
import json
import statistics

import torch

from benchmarks.lengths import length_of
from scope_megatron.learn.deal import Arithmetic, deal, imbalance
from scope_megatron.objective.packing import build, pack
from scope_megatron.objective.routing import route

PROMPT_TOKENS = 128


def main() -> None:
    options = arguments()
    found = [measure(options, step) for step in range(1, options.steps + 1)]
    worst = {name: round(max(one[name] for one in found), 4) for name in found[0]}
    middle = {name: round(statistics.median(one[name] for one in found), 4) for name in found[0]}
    print(json.dumps({"median": middle, "worst": worst}))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=int, default=4, help="data-parallel replicas")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--limit", type=int, default=12288, help="longest response, tokens")
    parser.add_argument("--hidden", type=int, default=1536, help="the student's hidden size")
    parser.add_argument("--microbatch", type=int, default=16384, help="train.microbatch_tokens")
    parser.add_argument(
        "--multiple", type=int, default=8, help="tokens of a pack: tensor x 2 context"
    )
    parser.add_argument("--steps", type=int, default=10)
    return parser.parse_args()


def measure(options: argparse.Namespace, step: int) -> dict[str, float]:
    count = options.prompts * options.samples
    lengths = [length_of("long", options.limit, step, i) or 0 for i in range(count)]
    routes = route([float(i % 2) for i in range(count)], [True] * count, lengths, "incorrect")
    cost = Arithmetic.of(options.hidden).cost(torch.tensor(lengths) + PROMPT_TOKENS)
    dealt = deal(cost, routes, options.data)
    sampled = torch.arange(count) // options.samples % options.data
    counted = (routes.routed, routes.incorrect)
    step_dealt, teacher_dealt = (imbalance(cost, dealt, c, options.data) for c in counted)
    step_kept, teacher_kept = (imbalance(cost, sampled, c, options.data) for c in counted)
    return {
        "imbalance": step_dealt,
        "teacher's": teacher_dealt,
        "imbalance without a deal": step_kept,
        "teacher's without": teacher_kept,
        "padded share": padded(lengths, dealt, options),
    }


def padded(lengths: list[int], dealt: torch.Tensor, options: argparse.Namespace) -> float:
    """Tokens of all replicas' packs that nobody reads, over all their tokens."""
    total = real = 0
    for replica in range(options.data):
        members = [i for i in range(len(lengths)) if dealt[i] == replica]
        sequences = {i: ([1] * PROMPT_TOKENS, [1] * lengths[i]) for i in members}
        sizes = [PROMPT_TOKENS + lengths[i] for i in members]
        for bin_ in pack(sizes, options.microbatch - options.multiple + 1):
            made = build(sequences, [members[i] for i in bin_], options.multiple)
            total, real = total + made.num_tokens, real + made.real_tokens
    return (total - real) / total


if __name__ == "__main__":
    main()
