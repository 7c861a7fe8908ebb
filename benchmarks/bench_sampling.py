"""Sampling inside a step beside the same vLLM asked directly, in turns, in the same processes.

    python -m benchmarks.bench_sampling [--rounds 15]

The quickstart's two engines. Directly: the same prompts, n = 8 per prompt, log-probabilities, no
seeds, which lets vLLM fork one prefill into eight samples. In the step: one request per response
with a seed of its own, so that its tokens depend on (seed, prompt, sample) alone, each response
handed to the verifiers as it ends, all gathered on every rank. Lengths are the model's own: they
differ between the two, so seconds per token sampled are compared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.rounds import ROOT, Contestant, Figures, run_turns, serve

WARM = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-sampling-") as name:
        settings = ["--worker", str(ROOT / "configs/quickstart.yaml"), f"output_dir={name}/run"]
        one = Contestant(
            "sampling",
            "benchmarks.bench_sampling",
            [*settings, "parallel.tensor=2", "parallel.data=1"],
            2,
            Path(name),
        )
        run_turns([one], options.rounds, WARM, Path(name))
    rates = {
        kind: statistics.median(s[f"{kind} s"] / s[f"{kind} tokens"] * 1e6 for s in one.steps)
        for kind in ("step", "direct")
    }
    seconds = {kind: statistics.median(s[f"{kind} s"] for s in one.steps) for kind in rates}
    print(
        json.dumps(
            {
                "seconds": {kind: round(value, 3) for kind, value in seconds.items()},
                "us per token": {kind: round(value, 2) for kind, value in rates.items()},
                "step over direct, per token": round(rates["step"] / rates["direct"], 3),
            }
        )
    )


def work(arguments: list[str]) -> None:
    """A rank: a whole step, then both ways once each."""
    import torch.distributed as dist

    from scope_megatron.config import load_config
    from scope_megatron.parallel.agree import all_sum
    from scope_megatron.train.trainer import Trainer

    trainer = Trainer(load_config(*arguments[:1], arguments[1:]))
    trainer.prepare_engine()
    number = 0

    def step() -> Figures:
        nonlocal number
        number += 1
        trainer.step(number)
        prompts = trainer.prompts(number)
        found = {}
        for kind, ask in (("step", in_step), ("direct", directly))[:: 1 if number % 2 else -1]:
            dist.barrier()
            started = time.perf_counter()
            tokens = ask(trainer, prompts, number)
            dist.barrier()
            found[f"{kind} s"] = time.perf_counter() - started
            found[f"{kind} tokens"] = all_sum([tokens])[0]
        return found

    serve(step)


def in_step(trainer: Any, prompts: Any, number: int) -> int:
    """Tokens of this rank's engine."""
    sampled = trainer.actor.grade(trainer.actor.sample(prompts, number))
    return sum(len(r.token_ids) for r in sampled) // trainer.actor.place.count


def directly(trainer: Any, prompts: Any, number: int) -> int:
    """Tokens of this rank's engine."""
    from vllm import SamplingParams

    place, settings, engine = trainer.actor.place, trainer.config.rollout, trainer.actor.engine
    parameters = SamplingParams(
        n=settings.group_size,
        temperature=settings.temperature,
        max_tokens=settings.max_response_tokens,
        stop_token_ids=engine._eos_ids,
        logprobs=0,
        detokenize=False,
    )
    mine = prompts[place.index :: place.count]
    requests = [{"prompt_token_ids": list(prompt.token_ids)} for prompt in mine]
    made = engine._llm.generate(requests, parameters, use_tqdm=False)
    return sum(len(one.token_ids) for output in made for one in output.outputs)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(sys.argv[2:])
    else:
        main()
