"""Ten updates with each switch of bench_switches on made-up responses, without an engine.

    python -m benchmarks.switches_fixed [NAME ...]

One process, a minute. The quickstart's models and prompts; every step trains on the same 64
responses, some of them right, so that only the switch differs: a line each with the loss and the
gradient's norm of the first and last update, and how far the losses are from those without one.
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
import warnings
from pathlib import Path

import torch.distributed as dist

from benchmarks.bench_switches import COMMON, PLAIN, SWITCHES
from benchmarks.rounds import ROOT
from scope_megatron.config import Config, load_config
from scope_megatron.types import Prompt, Rollout, Verdict
from tests.support.steps import one_step

GROUPS, SIZE, UPDATES = 8, 8, 10


def settings(name: str, folder: Path) -> Config:
    """The student's scores are the trainer's: no engine has said any."""
    own = (f"output_dir={folder / name}", "objective.old_logprobs=recompute")
    given = (*SWITCHES[name], f"rollout.prompts_per_step={GROUPS}", f"rollout.group_size={SIZE}")
    return load_config(ROOT / "configs/quickstart.yaml", [*COMMON, *own, *given])


def responses(config: Config) -> list[Rollout]:
    """Group 0 all right, group 1 all wrong, the others half and half."""
    from scope_megatron.train.setup import build_tokenizer, build_train_data

    tokenizer = build_tokenizer(config)
    data = build_train_data(config, tokenizer)

    def one(prompt: Prompt, group: int, sample: int) -> Rollout:
        right = {0: True, 1: False}.get(group, sample % 2 == 0)
        answer = str(prompt.answer) if right else str(int(str(prompt.answer)) + sample + 1)
        steps = "".join(f"{k} " for k in range(sample * (group + 1) % 7))
        ids = [*tokenizer.encode(steps + answer), tokenizer.eos_id]
        verdict = Verdict.CORRECT if right else Verdict.INCORRECT
        return Rollout(prompt, sample, ids, [0.0] * len(ids), True, verdict=verdict)

    return [one(data[g], g, k) for g in range(GROUPS) for k in range(SIZE)]


def main() -> None:
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29791")
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
    warnings.simplefilter("ignore")
    from scope_megatron.learn.learner import Learner
    from scope_megatron.parallel import platform
    from scope_megatron.parallel.topology import create_topology

    dist.init_process_group("gloo", rank=0, world_size=1)
    platform.initialize()
    topology, plain = create_topology(1, 1, False), [0.0] * UPDATES
    names = sys.argv[1:] or list(SWITCHES)
    with tempfile.TemporaryDirectory() as folder:
        for name in dict.fromkeys([PLAIN, *names]):
            config = settings(name, Path(folder))
            learner, rows = Learner(config, topology), []
            for _ in range(UPDATES):
                _, metrics = one_step(learner, responses(config))
                values = metrics.reduce(topology.dp_group, platform.device())
                rows.append((values["loss/total"], values["grad_norm"]))
            plain = [loss for loss, _ in rows] if name == PLAIN else plain
            finite = all(math.isfinite(value) for row in rows for value in row)
            moved = max(abs(loss - other) for (loss, _), other in zip(rows, plain, strict=True))
            print(
                f"{name}: {'finite' if finite else 'NOT FINITE'}; loss {rows[0][0]:.4f} to "
                f"{rows[-1][0]:.4f}; gradient {rows[0][1]:.3f} to {rows[-1][1]:.3f}; from plain "
                f"{moved:.4f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
