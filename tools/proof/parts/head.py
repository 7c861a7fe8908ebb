"""The loss head at the size of a real run: seconds, FLOP/s, and bandwidth against a copy."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch

from benchmarks import loss_methods as methods
from scope_megatron.objective import Kernel
from tests.support.memory import peak_memory
from tools.proof import measure
from tools.proof.record import Proof

CHUNKS = (256, 1024, 2048)
GIB = 2**30


def loss_head(proof: Proof) -> None:
    """Student and teacher hidden states -> loss and gradients, in bfloat16 on a GPU."""
    tokens, vocab, hidden = proof.size((16384, 151936, 1536), (64, 512, 32))
    dtype = proof.size(torch.bfloat16, torch.float32)
    _correct(proof, dtype)
    _times(proof, methods.Inputs.make(tokens, vocab, hidden, None, measure.proof_device(), dtype))
    _bandwidth(proof, dtype, tokens // 4, vocab)


def _times(proof: Proof, x: methods.Inputs) -> None:
    """Whole head at each chunk size, against its matrix products alone and against Liger's."""
    rounds, (tokens, hidden) = proof.size(3, 1), x.hidden.shape
    bare = measure.median_seconds(lambda: methods.bare_gemms(_part(x, tokens // 4)), rounds) * 4
    proof.figure("the matrix products alone", 1e3 * bare, "ms")
    flops = 2.0 * 4 * tokens * x.weight.shape[0] * hidden
    best = float("inf")
    for chunk in CHUNKS:
        taken = measure.median_seconds(partial(methods.one_pass, x, chunk), rounds)
        best = min(best, taken)
        name = f"head, {chunk} tokens at a time"
        proof.figure(name, 1e3 * taken, "ms")
        proof.figure(f"{name}, rate", flops / taken / 1e12, "TFLOP/s")
        extra = peak_memory(partial(methods.one_pass, x, chunk))
        proof.figure(f"{name}, memory", extra / GIB, "GiB")
    proof.figure("fastest head over the products alone", best / bare)
    _liger(proof, x, best, rounds)


def _liger(proof: Proof, x: methods.Inputs, best: float, rounds: int) -> None:
    """Beside ours where it is installed; that it fails is told and is not this project's fault."""
    reason = methods.liger_missing() or ("it needs a GPU" if proof.rehearse else "")
    if reason:
        proof.note("Liger's fused JSD", f"left out: {reason}")
        return
    try:
        taken = measure.median_seconds(lambda: methods.liger_jsd(x), rounds)
    except Exception as error:
        proof.note("Liger's fused JSD", f"failed: {type(error).__name__}: {str(error)[:200]}")
        return
    proof.figure("Liger's fused JSD", 1e3 * taken, "ms")
    proof.figure("Liger's time over the fastest head's", taken / best)


def _part(x: methods.Inputs, tokens: int) -> methods.Inputs:
    """The first tokens: all logits of 16k at once would not fit beside the rest."""
    names = ("hidden", "teacher_hidden", "targets", "mle", "kl")
    return replace(x, **{name: getattr(x, name)[:tokens] for name in names})


def _cast(x: methods.Inputs, dtype: torch.dtype) -> methods.Inputs:
    """Hidden states and weights in another type."""
    names = ("hidden", "weight", "teacher_hidden", "teacher_weight")
    return replace(x, **{name: getattr(x, name).to(dtype) for name in names})


def _correct(proof: Proof, dtype: torch.dtype) -> None:
    """The gradients of a small case against torch's autograd in float64."""
    x = methods.Inputs.make(
        *proof.size((512, 32768, 512), (32, 256, 32)), None, measure.proof_device()
    )
    low = _cast(x, dtype)
    exact = replace(_cast(low, torch.float64), mle=x.mle.double(), kl=x.kl.double())
    loss, gradients = methods.one_pass(low)
    true_loss, true = _straightforward(exact)
    proof.check("loss, relative error", float(abs(loss / true_loss - 1)), at_most=1e-2)
    for name, ours, theirs in zip(("hidden states", "weight"), gradients, true, strict=True):
        gap = (ours.double() - theirs).norm() / theirs.norm()
        limit = 2e-2 if dtype == torch.bfloat16 else 1e-4
        proof.check(f"gradient of the {name}, relative error", float(gap), at_most=limit)


def _straightforward(x: methods.Inputs) -> methods.Result:
    leaves = x.leaves
    logp = (leaves[0] @ leaves[1].t()).log_softmax(-1)
    logq = (x.teacher_hidden @ x.teacher_weight.t()).log_softmax(-1)
    divergence = (logp.exp() * (logp - logq)).sum(-1)
    picked = logp.gather(1, x.targets[:, None])[:, 0]
    loss = divergence @ x.kl - picked @ x.mle
    return loss.detach(), torch.autograd.grad(loss, leaves)


def _bandwidth(proof: Proof, dtype: torch.dtype, tokens: int, vocab: int) -> None:
    """Reverse KL of given logits: the forward reads two matrices, the backward reads two and
    writes one. The logits are made anew for each round, since the gradient takes their place."""
    copy = measure.copy_rate(proof.size(2 * GIB, 1 << 20))
    proof.figure("copy on the device, bytes read and written", copy / 1e9, "GB/s")
    x = methods.Inputs.make(tokens, vocab, 64, None, measure.proof_device(), dtype)
    teacher = x.teacher_hidden @ x.teacher_weight.t()
    kernels: list[Kernel] = ["torch"]
    if torch.cuda.is_available() and methods.triton_installed():
        kernels.insert(0, "triton")
    for kernel in kernels:
        times = []
        for _ in range(proof.size(5, 2)):
            once = partial(methods.kl_on_logits, x, x.hidden @ x.weight.t(), teacher, kernel)
            times.append(measure.median_seconds(once, 1, warm=0))
            del once
        taken = sorted(times)[len(times) // 2]
        rate = 5 * dtype.itemsize * tokens * vocab / taken
        proof.figure(f"reverse KL on logits by {kernel}", rate / 1e9, "GB/s")
        name = f"reverse KL on logits by {kernel}, share of the copy"
        if kernel == "triton":
            proof.target(name, rate / copy, at_least=0.6)
        else:
            proof.figure(name, rate / copy)
