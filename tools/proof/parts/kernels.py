"""The Triton kernels of the loss against float64: values and gradients, a real vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor

from tools.proof import trainer
from tools.proof.measure import proof_device
from tools.proof.record import Proof

TEMPERATURE, TEACHER_TEMPERATURE, BETA = 0.7, 1.3, 0.3
KINDS = ("reverse_kl", "forward_kl", "jsd")


def kernels(proof: Proof) -> None:
    """Each divergence in bfloat16 and float32, with padding columns that must not count."""
    columns, vocab, tokens = proof.size((152064, 151936, 64), (48, 41, 5))
    for dtype in (torch.bfloat16, torch.float32):
        student, teacher = (_logits(seed, tokens, columns, dtype) for seed in (0, 1))
        teacher[:, vocab:] = 50.0  # padding that leaked would own all the probability
        targets = torch.randint(vocab, (tokens,), device=proof_device())
        for kind in KINDS:
            _compare(proof, kind, student, teacher, targets, vocab)


def _compare(
    proof: Proof, kind: str, student: Tensor, teacher: Tensor, targets: Tensor, vocab: int
) -> None:
    upstream = torch.linspace(-1, 1, 2 * len(targets), device=student.device).view(2, -1)
    value, gradient = ours(kind, student, teacher, targets, vocab, upstream)
    exact, slope = in_float64(kind, student, teacher, targets, vocab, upstream)
    name = f"{kind}, {str(student.dtype).removeprefix('torch.')}"
    error = (value.double() - exact).abs() / (1 + exact.abs())
    proof.check(f"{name}: value, relative error", float(error.max()), at_most=1e-5)
    # one rounding to the logits' type, and float32's noise below the largest entry
    allowed = slope.abs() * torch.finfo(student.dtype).eps + 3e-6 * slope.abs().max()
    gap = (gradient[:, :vocab].double() - slope).abs() / allowed
    proof.check(f"{name}: gradient, units of the allowed error", float(gap.max()), at_most=1.0)
    padding = float(gradient[:, vocab:].abs().max())
    proof.check(f"{name}: gradient of padding", padding, at_most=0.0)


def ours(
    kind: str,
    student: Tensor,
    teacher: Tensor,
    targets: Tensor,
    vocab: int,
    upstream: Tensor,
    kernel: str = "triton",
) -> tuple[Tensor, Tensor]:
    """(log-probability and divergence [2, T], gradient [T, W]) by the kernels."""
    leaf = student.clone().requires_grad_()
    pair = trainer.logprob_and_divergence(
        kind,
        leaf,
        teacher,
        targets,
        vocab_size=vocab,
        temperature=TEMPERATURE,
        teacher_temperature=TEACHER_TEMPERATURE,
        beta=BETA,
        kernel=kernel,
    )
    return torch.stack(pair).detach(), torch.autograd.grad(pair, leaf, list(upstream))[0]


def in_float64(
    kind: str, student: Tensor, teacher: Tensor, targets: Tensor, vocab: int, upstream: Tensor
) -> tuple[Tensor, Tensor]:
    """The same as written on paper; gradient [T, V] without the padding."""
    leaf = student[:, :vocab].double().requires_grad_()
    logp = (leaf / TEMPERATURE).log_softmax(-1)
    logq = (teacher[:, :vocab].double() / TEACHER_TEMPERATURE).log_softmax(-1)
    picked = logp.gather(1, targets[:, None])[:, 0]
    if kind == "reverse_kl":
        divergence = (logp.exp() * (logp - logq)).sum(-1)
    elif kind == "forward_kl":
        divergence = (logq.exp() * (logq - logp)).sum(-1)
    else:  # generalised Jensen-Shannon: beta KL(teacher | m) + (1 - beta) KL(student | m)
        mixture = (BETA * logq.exp() + (1 - BETA) * logp.exp()).log()
        divergence = BETA * (logq.exp() * (logq - mixture)).sum(-1)
        divergence = divergence + (1 - BETA) * (logp.exp() * (logp - mixture)).sum(-1)
    pair = (picked, divergence)
    gradient = torch.autograd.grad(pair, leaf, list(upstream.double()))[0]
    return torch.stack(pair).detach(), gradient


def _logits(seed: int, tokens: int, columns: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator(proof_device()).manual_seed(seed)
    return (4 * torch.randn(tokens, columns, generator=generator, device=proof_device())).to(dtype)
