"""The ways to compute the loss that `bench_loss.py` compares, each from fresh inputs to gradients.

A method is a function of :class:`Inputs` that returns (loss, gradients of the student's tensors).
All of them compute the same objective where they can: the student's log-probability of each token,
the teacher's, and reverse KL over the full vocabulary, each token with its own weight.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

from scope_megatron.objective import (
    Kernel,
    Shard,
    Spec,
    fused_logprob_and_divergence,
    fused_loss,
    vocab_parallel_divergence,
    vocab_parallel_logprob,
    vocab_parallel_logprob_and_divergence,
)

Result = tuple[Tensor, tuple[Tensor, ...]]
REVERSE_KL = Spec(divergence="reverse_kl")


@dataclass(frozen=True)
class Inputs:
    """Of one rank: hidden states [T, H], weights [V/tp, H], targets [T], token weights [T]."""

    hidden: Tensor
    weight: Tensor
    teacher_hidden: Tensor
    teacher_weight: Tensor
    targets: Tensor
    mle: Tensor
    kl: Tensor
    group: dist.ProcessGroup | None

    @classmethod
    def make(
        cls,
        tokens: int,
        vocab: int,
        hidden: int,
        group: dist.ProcessGroup | None,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> Inputs:
        rank, size = (0, 1) if group is None else (group.rank(), group.size())
        same = torch.Generator(device).manual_seed(0)
        own = torch.Generator(device).manual_seed(1 + rank)

        def sample(generator: torch.Generator, *shape: int, scale: float = 1.0) -> Tensor:
            return torch.randn(*shape, generator=generator, device=device).mul_(scale).to(dtype)

        wrong = (torch.arange(tokens, device=device) % 2).float()
        scale = 2.0 / hidden**0.5
        return cls(
            sample(same, tokens, hidden),
            sample(own, vocab // size, hidden, scale=scale),
            sample(same, tokens, hidden),
            sample(own, vocab // size, hidden, scale=scale),
            torch.randint(vocab, (tokens,), generator=same, device=device),
            (1 - wrong) / tokens,
            wrong / tokens,
            group,
        )

    @property
    def shard(self) -> Shard:
        return Shard.of(self.weight.shape[0], None, self.group)

    @property
    def leaves(self) -> tuple[Tensor, Tensor]:
        return self.hidden.detach().requires_grad_(), self.weight.detach().requires_grad_()


def _finish(loss: Tensor, leaves: tuple[Tensor, ...]) -> Result:
    return loss.detach(), torch.autograd.grad(loss, leaves)


# (a) this project


def one_pass(x: Inputs, chunk: int | None = None) -> Result:
    """fused_loss: from hidden states, gradients made chunk by chunk in the forward.

    ``chunk`` None: as many tokens at a time as a run has.
    """
    leaves = x.leaves

    def loss(logprob: Tensor, divergence: Tensor | None, rows: slice) -> Tensor:
        assert divergence is not None
        return divergence @ x.kl[rows] - logprob @ x.mle[rows]

    teacher = (x.teacher_hidden, x.teacher_weight)
    spec = replace(REVERSE_KL, chunk=chunk)
    scored = fused_loss(*leaves, x.targets, loss, x.shard, spec, teacher)
    return _finish(scored.loss, leaves)


def recomputed(x: Inputs) -> Result:
    """fused_logprob_and_divergence: from hidden states, logits computed again in the backward."""
    leaves = x.leaves
    teacher = (x.teacher_hidden, x.teacher_weight)
    logprob, divergence = fused_logprob_and_divergence(
        *leaves, x.targets, teacher, x.shard, REVERSE_KL
    )
    return _finish(divergence @ x.kl - logprob @ x.mle, leaves)


def on_logits(x: Inputs) -> Result:
    """All logits are made, then vocab_parallel_logprob_and_divergence."""
    leaves = x.leaves
    teacher = x.teacher_hidden @ x.teacher_weight.t()
    logprob, divergence = vocab_parallel_logprob_and_divergence(
        _project(*leaves, x.group),
        x.targets,
        teacher,
        x.shard,
        replace(REVERSE_KL, inplace_backward=True),
    )
    return _finish(divergence @ x.kl - logprob @ x.mle, leaves)


# (c) torch autograd, each part by itself


class _Copy(torch.autograd.Function):
    """Identity; the backward sums over the group (Megatron's copy_to_tensor_model_parallel)."""

    @staticmethod
    def forward(ctx, value: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        return value.view_as(value)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        grad = grad.clone(memory_format=torch.contiguous_format)
        if ctx.group is not None:
            dist.all_reduce(grad, group=ctx.group)
        return grad, None


class _Sum(torch.autograd.Function):
    """Sum over the group; the backward is the identity."""

    @staticmethod
    def forward(ctx, value: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        value = value.clone()
        if group is not None:
            dist.all_reduce(value, group=group)
        return value

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def _project(hidden: Tensor, weight: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    return _Copy.apply(hidden, group) @ weight.t()


def _log_softmax(z: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """[T, V/tp] log-probabilities, in float32."""
    z = z.float()
    top = z.detach().amax(-1, keepdim=True)
    if group is not None:
        dist.all_reduce(top, op=dist.ReduceOp.MAX, group=group)
    z = z - top
    norm = _Sum.apply(z.exp().sum(-1, keepdim=True), group).log()
    return z - _Copy.apply(norm, group)


def _cross_entropy(z: Tensor, targets: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    logp = _log_softmax(z, group)
    start = 0 if group is None else group.rank() * z.shape[1]
    column = targets - start
    owned = (column >= 0) & (column < z.shape[1])
    picked = logp.gather(1, column.clamp(0, z.shape[1] - 1)[:, None])[:, 0]
    return -_Sum.apply(torch.where(owned, picked, 0.0), group)


def straightforward(x: Inputs) -> Result:
    """Vocab-parallel log-softmaxes, reverse KL and two cross-entropies as they are written down."""
    leaves = x.leaves
    logits = _project(*leaves, x.group)
    teacher = x.teacher_hidden @ x.teacher_weight.t()
    logp, logq = _log_softmax(logits, x.group), _log_softmax(teacher, x.group)
    divergence = _Sum.apply((logp.exp() * (logp - logq)).sum(-1), x.group)
    entropy = _cross_entropy(logits, x.targets, x.group)
    _cross_entropy(teacher, x.targets, x.group)
    return _finish(divergence @ x.kl + entropy @ x.mle, leaves)


# (e) the matrix products alone


def bare_gemms(x: Inputs) -> Result:
    """Both logits, and the two products of the student's gradient: nobody does less."""
    z = x.hidden @ x.weight.t()
    x.teacher_hidden @ x.teacher_weight.t()
    return z[0, 0], (z @ x.weight, z.t() @ x.hidden)


# cross-entropy of given logits: (a) against (b)


def given_logits(x: Inputs) -> Tensor:
    return (x.hidden @ x.weight.t()).float()


def our_cross_entropy(x: Inputs, logits: Tensor) -> Result:
    logits = logits.requires_grad_()  # overwritten, as by megatron-core's
    logprob = vocab_parallel_logprob(logits, x.targets, x.shard, Spec(inplace_forward=True))
    return _finish(-(logprob @ x.mle), (logits,))


def megatron_cross_entropy(x: Inputs, logits: Tensor) -> Result:
    """megatron-core's. It overwrites float32 logits, which nobody reads again here."""
    from megatron.core.tensor_parallel import vocab_parallel_cross_entropy

    logits = logits.requires_grad_()
    entropy = vocab_parallel_cross_entropy(logits[:, None], x.targets[:, None])
    return _finish(entropy[:, 0] @ x.mle, (logits,))


def triton_installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def kl_on_logits(x: Inputs, logits: Tensor, teacher: Tensor, kernel: Kernel) -> Result:
    """Reverse KL of given logits [T, V] of one rank, whose memory takes the gradient."""
    logits = logits.requires_grad_()
    spec = replace(REVERSE_KL, inplace_backward=True, kernel=kernel)
    shard = Shard.of(logits.shape[1], None, None)
    divergence = vocab_parallel_divergence(logits, teacher, shard, spec)
    return _finish(divergence @ x.kl, (logits,))


# (d) Liger


def liger_missing() -> str | None:
    """Why Liger cannot be measured; None: it can, on a GPU."""
    if importlib.util.find_spec("liger_kernel") is None:
        return "liger-kernel is not installed"
    return None if triton_installed() else "it needs Triton, which is not installed"


def liger_jsd(x: Inputs) -> Result:
    """Liger's fused linear JSD at beta 1: reverse KL, mean over tokens; one GPU."""
    from liger_kernel.transformers.functional import liger_fused_linear_jsd

    leaves = x.leaves
    loss = liger_fused_linear_jsd(*leaves, x.teacher_hidden, x.teacher_weight, jsd_beta=1.0)
    return _finish(loss, leaves)
