"""A rank of a run with engines on ranks of their own, for ``benchmarks.rounds``.

    python -m benchmarks.worker_async CONFIG LENGTHS [KEY=VALUE ...]

Training ranks make a step whenever they are asked to. Sampling ranks do what rank 0 tells them, in
a thread, and answer at once. At ``rollout.lag`` 1 a step ends when the next one's responses are
there, so that nothing is under way while others have their turn.
"""

from __future__ import annotations

import os
import sys
import threading
from types import SimpleNamespace
from typing import Any, cast

from benchmarks.lengths import Lengths
from benchmarks.rounds import Figures, serve
from benchmarks.worker_scope import prescribe

WANTED = ("time/", "sampling/", "overlap/", "tokens/response")


def main() -> None:
    path, lengths, *overrides = sys.argv[1:]
    from scope_megatron.config import load_config

    config = load_config(path, overrides)
    if int(os.environ["RANK"]) >= config.training_ranks:
        sample(config, cast(Lengths, lengths))
    else:
        train(config, cast(Lengths, lengths))


def sample(config: Any, lengths: Lengths) -> None:
    """Be a sampling rank."""
    from scope_megatron.train.sampler import SamplingRank

    rank = SamplingRank(config)
    if lengths != "natural":
        actor = SimpleNamespace(engine=rank._engine)
        prescribe(SimpleNamespace(config=config, actor=actor, progress=rank.progress), lengths)
    rank._interrupt.install = lambda: None  # type: ignore[method-assign]  # a thread may not
    threading.Thread(target=rank.run, daemon=True).start()
    serve(lambda: {})


def train(config: Any, lengths: Lengths) -> None:
    """Be a training rank, with or without an engine."""
    from scope_megatron.train.trainer import Trainer

    trainer = Trainer(config)
    if lengths != "natural" and not config.separate:
        prescribe(trainer, lengths)
    trainer.prepare_engine()
    number = 0

    def step() -> Figures:
        nonlocal number
        number += 1
        metrics = trainer.step(number)
        return {name: value for name, value in metrics.items() if name.startswith(WANTED)}

    serve(step)


if __name__ == "__main__":
    main()
