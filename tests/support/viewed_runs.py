"""Runs made up for the page: metrics and responses by the classes that a run writes them with."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path

import torch

from scope_megatron.logging.rollouts import ResponseRecord, RolloutWriter
from scope_megatron.types import Prompt, Rollout, Verdict


class Letters:
    """A token per byte, as byte-level tokenizers have them."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        return bytes(ids).decode("utf-8", "replace")


ESCAPE = 0x1B  # what the teacher would rather have said: a token that steers a terminal
NAMES = (
    *(f"loss/{name}" for name in ("total", "mle", "kl")),
    *(f"path/{name}" for name in ("correct", "incorrect", "masked")),
    *(f"perplexity/{name}" for name in ("student_correct", "student_incorrect")),
    "perplexity/teacher_incorrect",
    *(f"time/{name}" for name in ("rollout", "verify", "deal", "score", "train", "sync", "step")),
    *(f"weight/{side}_{kind}" for side in ("student", "teacher") for kind in ("spread", "ess")),
    "reward/mean",
    "rollout/truncated",
    "rollout/response_tokens_mean",
    "mismatch/mean_abs_prob",
    "mismatch/mean_abs_logprob",
    "mismatch/k3_kl",
    "grad_norm",
    "lr",
    "memory/resident_gib",
    *(f"entropy/{name}" for name in ("student_correct", "student_incorrect")),
    "tokens/total",
    "tokens/response",
    "balance/imbalance",
    "balance/padded_share",
)


def write_metrics(output: Path, steps: int, seed: int = 0) -> None:
    """metrics.jsonl and events.jsonl of a run that has finished."""
    output.mkdir(parents=True, exist_ok=True)
    draw = random.Random(seed)
    with (output / "metrics.jsonl").open("w") as file:
        for step in range(1, steps + 1):
            trend = 1 - math.exp(-3 * step / steps)
            row = {name: round(trend + draw.gauss(0, 0.1), 6) for name in NAMES}
            file.write(json.dumps(row | {"step": step}) + "\n")
    events = [("start", 0), ("resume", steps // 2), ("finish", steps)]
    lines = (json.dumps({"time": 0.0, "kind": k, "step": s, "text": ""}) for k, s in events)
    (output / "events.jsonl").write_text("\n".join(lines) + "\n")
    (output / "config.yaml").write_text(f"seed: {seed}\ntrain: {{steps: {steps}}}\n")


def response(
    text: str, group: int, sample: int, draw: random.Random, prompt: str = "What is 1 + 1?"
) -> ResponseRecord:
    """A response on either path, with made-up log-probabilities."""
    ids = list(text.encode())
    correct = draw.random() < 0.5
    verdict = Verdict.CORRECT if correct else Verdict.INCORRECT
    asked = Prompt(index=group, token_ids=tuple(prompt.encode()), answer="2")
    student = torch.tensor([-draw.expovariate(2.0) for _ in ids])
    return ResponseRecord(
        group=group,
        rollout=Rollout(asked, sample, ids, student.tolist(), draw.random() < 0.9, text, verdict),
        path="correct" if correct else "incorrect",
        weight=draw.random(),
        factor=draw.random() * 1e-3,
        student=student,
        teacher=None if correct else student + torch.tensor([draw.gauss(0, 1) for _ in ids]),
        entropy=student.abs(),
        student_best=likeliest(ids, student),
        teacher_best=None if correct else likeliest([ESCAPE] * len(ids), student - 1.0),
    )


def likeliest(ids: Sequence[int], logprobs: torch.Tensor) -> torch.Tensor:
    """[length, 2, 2]: each token itself, and a blank."""
    tokens = torch.tensor([ids, [32] * len(ids)], dtype=torch.float32).t()
    return torch.stack([tokens, torch.stack([logprobs, logprobs - 3.0], 1)], 1)


def write_responses(output: Path, steps: Sequence[int], groups: int, samples: int) -> None:
    """rollouts/ with ``groups`` x ``samples`` responses at each of the steps."""
    draw = random.Random(1)
    writer = RolloutWriter(output, Letters(), (0, 1), math.inf)
    texts = [f"{a} + {b} = {a + b}, so \\boxed{{{a + b}}}" for a in range(9) for b in range(9)]
    for step in steps:
        records = [
            response(draw.choice(texts), group, sample, draw)
            for group in range(groups)
            for sample in range(samples)
        ]
        writer.write("train", step, records)
