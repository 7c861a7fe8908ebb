"""Divergences on few tokens and by the teacher's entropy, from their definitions, row by row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

VOCAB, WIDTH, ROWS = 19, 24, 7
TEMPERATURES = {"temperature": 0.6, "teacher_temperature": 1.3}
CASES = [
    *(
        f"{of}{tail}"
        for of in ("teacher", "student", "union", "intersection")
        for tail in ("", "+tail")
    ),
    "entropy",
]


def options_of(case: str) -> dict[str, Any]:
    """Of the loss head, by keywords."""
    if case == "entropy":
        return TEMPERATURES | {"kind": "entropy_kl", "entropy_threshold": 1.7}
    of, _, tail = case.partition("+")
    return TEMPERATURES | {"kind": "topk", "topk": 6, "topk_of": of, "topk_tail": bool(tail)}


def sample(seed: int, scale: float = 2.0) -> Tensor:
    """[ROWS, WIDTH]; columns from VOCAB on are padding that would own all probability."""
    generator = torch.Generator().manual_seed(seed)
    values = scale * torch.randn(ROWS, WIDTH, generator=generator, dtype=torch.float64)
    values[:, VOCAB:] = 50.0
    return values


def expected(logits: Tensor, teacher: Tensor, **options: Any) -> Tensor:
    """[ROWS] on explicit probabilities, with torch's gradient."""
    return torch.stack(
        [
            divergence_of_row(z, zt, options)
            for z, zt in zip(logits[:, :VOCAB], teacher[:, :VOCAB], strict=True)
        ]
    )


def divergence_of_row(z: Tensor, zt: Tensor, options: dict[str, Any]) -> Tensor:
    """Of logits [V] of student and teacher."""
    p = torch.softmax(z / options["temperature"], 0)
    q = torch.softmax(zt / options["teacher_temperature"], 0)
    if options["kind"] == "reverse_kl":
        return (p * (p / q).log()).sum()
    if options["kind"] == "entropy_kl":
        reverse, forward = (p * (p / q).log()).sum(), (q * (q / p).log()).sum()
        entropy = -float((q * q.log()).sum())
        return reverse + forward if entropy > options["entropy_threshold"] else reverse
    mine, theirs = (
        {int(i) for i in x.argsort(descending=True)[: options["topk"]]} for x in (z, zt)
    )
    chosen = sorted(
        {
            "teacher": theirs,
            "student": mine,
            "union": mine | theirs,
            "intersection": mine & theirs,
        }[options["topk_of"]]
    )
    if not chosen:
        return (z * 0.0).sum()
    inside_p, inside_q = p[chosen], q[chosen]
    if not options["topk_tail"]:
        inside_p, inside_q = inside_p / inside_p.sum(), inside_q / inside_q.sum()
        return (inside_p * (inside_p / inside_q).log()).sum()
    rest = [v for v in range(len(p)) if v not in chosen]
    beyond = p[rest].sum() * (p[rest].sum() / q[rest].sum()).log()
    return (inside_p * (inside_p / inside_q).log()).sum() + beyond
