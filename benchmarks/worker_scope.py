"""A rank of this project that makes a step whenever it is asked to (``benchmarks.rounds``).

    python -m benchmarks.worker_scope CONFIG LENGTHS[,FLAG ...] [KEY=VALUE ...]

``half``: every second sample of a group counts as correct. ``forwards``: after each step, a
forward pass of the student over all its responses and of the teacher over the incorrect ones are
timed. ``naive``: the teacher scores all responses, and each is trained where it was sampled.
``padded``: every sequence of a pass is as long as the longest. ``ungraded``: no verifier judges a
response. ``products``: after each step, the matrix products of its training are timed alone.
"""

from __future__ import annotations

import resource
import sys
import time
from typing import Any, cast

from benchmarks.lengths import Lengths, length_of
from benchmarks.products import products_of, time_products
from benchmarks.rounds import Figures, serve

HEAD_ROWS = 256  # of logits at a time, for products alone


def main() -> None:
    path, wanted, *overrides = sys.argv[1:]
    from scope_megatron.config import load_config
    from scope_megatron.train.trainer import Trainer
    from scope_megatron.types import Verdict

    lengths, *flags = wanted.split(",")
    trainer = Trainer(load_config(path, overrides))
    if lengths != "natural":
        prescribe(trainer, cast(Lengths, lengths))
    if "half" in flags:
        judge_half(trainer)
    if "ungraded" in flags:
        trainer.actor.verifiers.grade = lambda answers: [Verdict.INCORRECT] * len(answers)
    if "naive" in flags:
        waste(trainer)
    if "padded" in flags:
        pad(trainer)
    batches = remember_batches(trainer)
    trainer.prepare_engine()
    number = 0

    def step() -> Figures:
        nonlocal number
        number += 1
        metrics = trainer.step(number)
        found = {name.partition("/")[2]: v for name, v in metrics.items() if name[:5] == "time/"}
        found |= {name: v for name, v in metrics.items() if name.startswith("balance/")}
        if "forwards" in flags:
            found |= forwards(trainer, batches[-1])
        if "products" in flags:
            shapes = products_of(trainer.learner, batches[-1])
            found["products"] = time_products(*shapes, block=HEAD_ROWS)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        return {**found, "memory GiB": peak}

    serve(step)


def prescribe(trainer: Any, lengths: Lengths) -> None:
    """Give every response of a step its length; nothing ends one earlier."""
    settings, engine = trainer.config.rollout, trainer.actor.engine
    parameters_of = engine._parameters

    def parameters(sampling: Any, prompt: Any, sample: int) -> Any:
        made = parameters_of(sampling, prompt, sample)
        position = prompt.index % settings.prompts_per_step * settings.group_size + sample
        limit, step = settings.max_response_tokens, trainer.progress.step
        made.max_tokens = made.min_tokens = length_of(lengths, limit, step, position)
        return made

    engine._parameters = parameters


def judge_half(trainer: Any) -> None:
    """Samples 1, 3, 5 ... are correct, and every response counts as finished."""
    from scope_megatron.types import Verdict

    grade = trainer.actor.grade

    def graded(sampled: Any) -> Any:
        rollouts = grade(sampled)
        for rollout in rollouts:
            rollout.verdict = Verdict.CORRECT if rollout.sample % 2 else Verdict.INCORRECT
            rollout.finished = True
        return rollouts

    trainer.actor.grade = graded


def waste(trainer: Any) -> None:
    """The teacher over everything, and no deal."""
    from dataclasses import replace

    import torch

    from scope_megatron.learn import deal

    learner = trainer.learner
    learner.algorithm = replace(learner.algorithm, frozen_scores=lambda routes: routes.routed)
    group = trainer.config.rollout.group_size
    deal.deal = lambda cost, routes, replicas: torch.arange(len(cost)) // group % replicas


def pad(trainer: Any) -> None:
    """Passes over sequences of one length, as without packing: in front of a prompt stand tokens
    that nobody reads."""
    from dataclasses import replace

    scorer = trainer.learner.scorer
    pack = type(scorer).pack

    def padded(self: Any, rollouts: Any, members: Any) -> Any:
        longest = max((rollouts[i].length for i in members), default=0)

        def filled(rollout: Any) -> Any:
            ids = rollout.prompt.token_ids
            front = ids[:1] * (longest - rollout.length)
            return replace(rollout, prompt=replace(rollout.prompt, token_ids=[*front, *ids]))

        return pack(self, {i: filled(rollouts[i]) for i in members}, members)

    type(scorer).pack = padded


def remember_batches(trainer: Any) -> list[Any]:
    """The last batch, for what is timed after its step."""
    batches: list[Any] = []
    score = trainer.learner.score

    def scored(batch: Any) -> None:
        batches[:] = [batch]
        score(batch)

    trainer.learner.score = scored
    return batches


def forwards(trainer: Any, batch: Any) -> Figures:
    """Seconds of the student's forward over all and the teacher's over the incorrect responses."""
    learner = trainer.learner
    found, spec = {}, learner.head.spec.alone()
    started = time.perf_counter()
    learner.scorer.score(learner.student, batch.rollouts, batch.members(batch.routes.routed), spec)
    found["student forward"] = time.perf_counter() - started
    if learner.frozen:
        members = batch.members(batch.routes.incorrect)
        started = time.perf_counter()
        learner.scorer.score(learner.frozen[0], batch.rollouts, members, spec)
        found["teacher forward"] = time.perf_counter() - started
    return found


if __name__ == "__main__":
    main()
