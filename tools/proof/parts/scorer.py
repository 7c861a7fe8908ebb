"""Log-probabilities scored again and again behind a busy stream (C1): always those of the CPU."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from tools.proof import measure, models, trainer
from tools.proof.record import Proof


def scorer(proof: Proof) -> None:
    """The device is kept busy before every call, so that copies to the host have to wait."""
    shape = proof.size(models.Qwen2Shape(512, 1408, 6, 8, 2, 4096), models.TOY)
    student = models.make_model(shape, proof.folder / "student", "float32")
    rollouts = models.random_rollouts(shape.vocab, *proof.size((16, 8, 200), (4, 4, 24)))
    expected = by_transformers(student, rollouts)
    config = models.settings(
        proof.folder,
        student,
        None,
        model__dtype="float32",
        train__microbatch_tokens=proof.size(2048, 128),
    )
    learner = trainer.build_learner(config)
    busy = torch.randn(proof.size(8192, 64), proof.size(8192, 64), device=measure.proof_device())
    sink = torch.empty_like(busy)
    first: list[Tensor] = []
    worst, differing = 0.0, 0
    for _ in range(proof.size(100, 3)):
        for _ in range(20):  # milliseconds of work ahead of the scorer's on the same stream
            torch.mm(busy, busy, out=sink)
        values = trainer.logprobs(learner, rollouts)
        first = first or [value.clone() for value in values]
        worst = max(worst, *(_gap(a, b) for a, b in zip(values, expected, strict=True)))
        differing += any(_gap(a, b) > 1e-4 for a, b in zip(values, first, strict=True))
    proof.check("largest difference from the CPU's log-probabilities", worst, at_most=2e-3)
    proof.check("calls that differ from the first", differing, at_most=0)
    proof.figure("responses scored in each call", len(rollouts))


def _gap(a: Tensor, b: Tensor) -> float:
    """Infinite where the shapes differ: log-probabilities that were cut in the wrong place."""
    return float((a - b).abs().max()) if a.shape == b.shape else float("inf")


@torch.no_grad()
def by_transformers(directory: Path, rollouts: list) -> list[Tensor]:
    """Log-probabilities of every response's tokens, one sequence at a time, on the CPU."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    out = []
    for rollout in rollouts:
        prompt, ids = list(rollout.prompt.token_ids), rollout.token_ids
        rows = slice(len(prompt) - 1, len(prompt) + len(ids) - 1)
        logp = model(torch.tensor([prompt + ids])).logits[0, rows].log_softmax(-1)
        out.append(logp.gather(1, torch.tensor(ids)[:, None])[:, 0])
    return out
