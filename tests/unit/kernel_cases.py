"""The loss kernels against float64 and against the torch path: on a GPU, or interpreted on a CPU.

    TRITON_INTERPRET=1 python -m pytest tests/unit/kernel_cases.py

`test_kernels.py` runs this file in a process of its own: Triton reads the variable when it is
imported, and nothing else of a test run may see it.
"""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from torch import Tensor

from scope_megatron.objective.head import kernels
from scope_megatron.objective.head import statistics as vocab
from scope_megatron.objective.head.shard import Shard
from scope_megatron.objective.head.spec import Spec
from tests.support.heads import (
    fused_logprob,
    fused_logprob_and_divergence,
    fused_loss,
    vocab_parallel_divergence,
    vocab_parallel_logprob,
    vocab_parallel_logprob_and_divergence,
    vocab_parallel_scores,
)
from tests.unit.test_loss import reference_divergence, reference_logprob

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
T, WIDTH, VOCAB, BLOCK = 7, 27, 21, 8  # three blocks, the last one cut and half padding
DENSE = ["reverse_kl", "forward_kl", "jsd"]
SETTINGS = {"temperature": 0.6, "teacher_temperature": 1.3, "beta": 0.3}
TYPES = [torch.float32, torch.bfloat16, torch.float16]
TOP, NORM, TEACHER_TOP, TEACHER_NORM = 0, 1, 4, 5


@pytest.fixture(autouse=True)
def ran(monkeypatch: pytest.MonkeyPatch) -> Counter:
    """Small blocks; counts the programs that ran."""
    counts: Counter = Counter()
    run = kernels._run

    def counting(name, *args, **constants):
        counts[name] += 1
        return run(name, *args, **constants)

    monkeypatch.setattr(kernels, "_run", counting)
    monkeypatch.setattr(kernels, "REDUCE_BLOCK", BLOCK)
    monkeypatch.setattr(kernels, "GRADIENT_BLOCK", BLOCK)
    return counts


def sample(seed: int, *shape: int, scale: float = 3.0, dtype=torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(*shape or (T, WIDTH), generator=generator)).to(DEVICE, dtype)


def targets() -> Tensor:
    return torch.tensor([0, 20, 8, 7, 15, 16, 1], device=DEVICE)


def both(z: Tensor, teacher: Tensor, kind: str, kernel: str = "triton", **more) -> tuple:
    options = {"kind": kind, "vocab_size": VOCAB, **SETTINGS, **more}
    return vocab_parallel_logprob_and_divergence(z, targets(), teacher, kernel=kernel, **options)


def value_and_gradient(function, logits: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor]:
    leaf = logits.clone().requires_grad_()
    value = torch.cat(function(leaf))
    return value.detach(), torch.autograd.grad(value, leaf, upstream.to(value))[0]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("kind", DENSE)
def test_value_and_gradient_are_those_of_float64(kind, dtype, ran):
    logits, teacher, upstream = sample(0, dtype=dtype), sample(1, dtype=dtype), sample(2, 2 * T)
    teacher[:, VOCAB:] = 50.0  # padding that leaks would own all the probability
    value, grad = value_and_gradient(lambda z: both(z, teacher, kind), logits, upstream)

    def reference(z):
        settings = {**SETTINGS, "topk": 1}
        divergence = reference_divergence(z, teacher.cpu(), kind, VOCAB, **settings)
        return reference_logprob(z, targets().cpu(), VOCAB, 0.6), divergence

    want, slope = value_and_gradient(reference, logits.cpu().double(), upstream.cpu())
    programs = ["reduce_rows", "gradient_blocks"] + ["mixture_rows"] * (kind == "jsd")
    assert ran == dict.fromkeys(programs, 1)
    assert (value.dtype, grad.dtype) == (torch.float32, dtype)
    torch.testing.assert_close(value.cpu().double(), want, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(grad.cpu().double(), slope, rtol=rounding(dtype), atol=5e-6)
    assert not grad[:, VOCAB:].any()


@pytest.mark.parametrize("dtype", TYPES)
def test_logprob_and_entropy_are_those_of_float64(dtype, ran):
    logits, upstream = sample(0, dtype=dtype), sample(2, T)
    options = {"temperature": 0.6, "vocab_size": VOCAB, "kernel": "triton"}
    value, grad = value_and_gradient(
        lambda z: [vocab_parallel_logprob(z, targets(), **options)], logits, upstream
    )
    want, slope = value_and_gradient(
        lambda z: [reference_logprob(z, targets().cpu(), VOCAB, 0.6)],
        logits.cpu().double(),
        upstream.cpu(),
    )
    torch.testing.assert_close(value.cpu().double(), want, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(grad.cpu().double(), slope, rtol=rounding(dtype), atol=5e-6)
    scores = vocab_parallel_scores(logits, targets(), with_entropy=True, **options)
    torch.testing.assert_close(scores.logprob, value, rtol=0, atol=0)
    p = torch.softmax(logits[:, :VOCAB].cpu().double() / 0.6, -1)
    torch.testing.assert_close(
        scores.entropy.cpu().double(), -(p * p.log()).sum(-1), rtol=2e-6, atol=2e-6
    )
    assert ran == {"reduce_rows": 2, "gradient_blocks": 1}


def rounding(dtype: torch.dtype) -> float:
    """Relative error of one rounding, which Triton's interpreter does by cutting off."""
    unit = torch.finfo(dtype).eps
    return (unit / 2 if DEVICE.type == "cuda" else unit) + 2e-6


def ramp(step: float) -> Tensor:
    """The maximum moves (or stays) at every column; noise on top."""
    return sample(5) + step * torch.arange(WIDTH, device=DEVICE)


def forbidden(logits: Tensor, *columns: int, by: float = -math.inf) -> Tensor:
    logits = logits.clone()
    logits[:, list(columns)] = by
    return logits


FIRST = range(BLOCK)  # a whole block: the maximum is still unknown behind it
LOWEST = torch.finfo(torch.float32).min
# name: (student, teacher) of whole shards
ROWS = {
    "plain": lambda: (sample(0), sample(1)),
    "both climb": lambda: (ramp(3.0), ramp(2.0)),
    "student climbs, teacher falls": lambda: (ramp(3.0), ramp(-2.0)),
    "student falls, teacher climbs": lambda: (ramp(-3.0), ramp(2.0)),
    "climb in steps of a thousand": lambda: (ramp(1e3), ramp(-1e3)),
    "up at 1e4": lambda: (sample(0) + 1e4, sample(1) - 1e4),
    "between -1e4 and 1e4": lambda: (sample(0, scale=1e4), sample(1, scale=1e4)),
    "student forbids": lambda: (forbidden(sample(0), 3, 12, 20), sample(1)),
    "both forbid": lambda: (forbidden(sample(0), 3, 12), forbidden(sample(1), 3, 12)),
    "both forbid a block": lambda: (forbidden(sample(0), *FIRST), forbidden(sample(1), *FIRST)),
    "student forbids a block": lambda: (forbidden(sample(0), *FIRST), sample(1)),
    "by the lowest number": lambda: (
        forbidden(sample(0), *FIRST, 9, by=LOWEST),
        forbidden(sample(1), *FIRST, by=LOWEST),
    ),
    "all forbidden": lambda: (sample(0) - math.inf, sample(1) - math.inf),
    "mixed types": lambda: (sample(0), sample(1).bfloat16()),
    "by columns": lambda: (sample(0).t().contiguous().t(), sample(1).t().contiguous().t()),
}


def local(rows: str, spec: Spec, shard: Shard, kernel: str) -> Tensor:
    given = [part[:, : max(1, WIDTH - 3)] for part in ROWS[rows]()]
    spec = Spec(**{**vars(spec), "kernel": kernel})
    return vocab.local_statistics(*given, targets(), shard, spec)[0]


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("kind", [None, "entropy", *DENSE])
def test_columns_are_those_of_the_torch_path(rows, kind, ran):
    """Shards of two ranks: with padding, with one column, with nothing but padding."""
    names = {None: {}, "entropy": {"entropy": True}}
    spec = Spec(0.6, 1.3, **names.get(kind, {"divergence": kind, "beta": 0.3}))
    for rank, start, width in ((0, 0, VOCAB), (1, 9, BLOCK), (1, 20, 1), (1, 24, 0)):
        shard = Shard(None, rank, start, WIDTH - 3, width, VOCAB)
        ours, want = (local(rows, spec, shard, kernel) for kernel in ("triton", "torch"))
        if rows == "by the lowest number" and width <= BLOCK:
            continue  # nothing else: its mass is W or 0, which are alike behind the merge
        assert ours.shape == want.shape and not ours.isnan().any()
        exact = [TOP, 2] + [TEACHER_TOP, 6] * spec.dense
        assert torch.equal(ours[:, exact], want[:, exact])
        torch.testing.assert_close(ours, want, rtol=4e-6, atol=4e-6)
    assert ran["reduce_rows"] == 3  # an empty shard needs none


@pytest.mark.parametrize("rows", [rows for rows in ROWS if rows != "all forbidden"])
@pytest.mark.parametrize("kind", DENSE)
def test_gradient_is_that_of_the_torch_path(rows, kind):
    logits, teacher = ROWS[rows]()
    pairs = [
        value_and_gradient(lambda z, k=k: both(z, teacher, kind, k), logits, sample(2, 2 * T))
        for k in ("triton", "torch")
    ]
    (value, grad), (want, slope) = pairs
    torch.testing.assert_close(value, want, rtol=4e-6, atol=4e-6)
    scale = max(1.0, float(slope.abs().max()))
    torch.testing.assert_close(grad, slope, rtol=1e-5, atol=4e-6 * scale)


def test_forbidden_by_the_teacher_alone_is_a_huge_number_and_not_nan():
    teacher = forbidden(sample(1), *FIRST)
    pairs = [
        value_and_gradient(
            lambda z, k=k: both(z, teacher, "reverse_kl", k), sample(0), sample(2, 2 * T)
        )
        for k in ("triton", "torch")
    ]
    assert (pairs[0][0][T:] > 1e15).all()
    torch.testing.assert_close(pairs[0], pairs[1], rtol=1e-5, atol=0)


@pytest.mark.parametrize("kind", DENSE)
def test_nan_of_the_teacher_stays_where_it_is_scored(kind):
    """In its own row's divergence, and out of the gradient of a row that has none."""
    teacher = sample(1)
    teacher[3] = math.nan
    teacher[5, 9] = math.nan
    leaf = sample(0).requires_grad_()
    logprob, divergence = both(leaf, teacher, kind)
    bad = torch.tensor([3, 5], device=DEVICE)
    assert divergence.isnan().nonzero().flatten().tolist() == [3, 5]
    upstream = sample(2, T)
    upstream[bad] = 0
    pair = (sample(4, T), upstream)
    (grad,) = torch.autograd.grad((logprob, divergence), leaf, pair)
    (want,) = torch.autograd.grad(both(leaf, sample(1), kind), leaf, pair)
    torch.testing.assert_close(grad, want, rtol=0, atol=0)
    assert grad[3].abs().max() > 0  # it is on the likelihood path


def test_nan_of_the_student_is_not_hidden():
    logits = sample(0)
    logits[2, 9] = math.nan
    logprob = vocab_parallel_logprob(logits, targets(), vocab_size=VOCAB, kernel="triton")
    assert logprob.isnan().nonzero().flatten().tolist() == [2]


def test_each_upstream_alone():
    """Only one of the two outputs is used: the other has no gradient at all."""
    for index in (0, 1):
        grads = []
        for kernel in ("triton", "torch"):
            leaf = sample(0).requires_grad_()
            out = both(leaf, sample(1), "reverse_kl", kernel)[index]
            grads.append(torch.autograd.grad(out, leaf, sample(2, T))[0])
        torch.testing.assert_close(grads[0], grads[1], rtol=1e-5, atol=1e-6)
    leaf = sample(0).requires_grad_()
    alone = vocab_parallel_divergence(leaf, sample(1), vocab_size=VOCAB, kernel="triton")
    (grad,) = torch.autograd.grad(alone.sum(), leaf)
    torch.testing.assert_close(grad.sum(-1), torch.zeros(T, device=DEVICE), rtol=0, atol=1e-5)


def test_in_place_and_the_error_of_whoever_needs_the_logits():
    grads = []
    for inplace in (False, True):
        leaf = sample(0).requires_grad_()
        logits = leaf * 1.0
        pair = both(logits, sample(1), "reverse_kl", inplace_backward=inplace)
        squares = logits.square().sum()
        sum(pair).sum().backward(retain_graph=True)
        torch.testing.assert_close(logits, leaf.grad if inplace else leaf, rtol=0, atol=0)
        grads.append(leaf.grad)
    torch.testing.assert_close(grads[1], grads[0], rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        squares.backward()


def test_offsets_beyond_31_bits():
    """Rows 2^30 elements apart: the third starts behind what an int32 can count."""
    memory = torch.empty(2**31 + WIDTH, dtype=torch.bfloat16, device=DEVICE)
    apart = memory.as_strided((3, WIDTH), (2**30, 1))
    apart.copy_(sample(0, 3, WIDTH))
    near, where = apart.clone(), targets()[:3]
    grads = []
    for logits in (near, apart):
        options = {"inplace_backward": True, "kernel": "triton"}
        leaf = logits.detach().requires_grad_()
        pair = vocab_parallel_logprob_and_divergence(leaf, where, leaf.detach(), **options)
        grads.append(torch.autograd.grad(pair, leaf, (sample(2, 3), sample(3, 3)))[0])
    assert torch.equal(grads[0], grads[1]) and grads[1][2].any()


@pytest.mark.parametrize("kind", DENSE)
def test_the_fused_head_uses_the_kernels(kind, ran):
    hidden, weight = sample(6, T, 5, scale=1.0), sample(7, WIDTH, 5, scale=1.0)
    teacher = (sample(8, T, 6, scale=1.0), sample(9, WIDTH, 6, scale=1.0))
    results = {}
    for kernel in ("triton", "torch"):
        ran.clear()
        options = {"vocab_size": VOCAB, "chunk": 3, "kernel": kernel}
        divergence = {"kind": kind, **SETTINGS, **options}
        leaves = hidden.clone().requires_grad_(), weight.clone().requires_grad_()

        def loss(logprob, divergence, rows):
            return (divergence * 2 - logprob).sum()

        one = fused_loss(*leaves, targets(), loss, teacher=teacher, **divergence)
        logprob, value = fused_logprob_and_divergence(*leaves, targets(), teacher, **divergence)
        plain = fused_logprob(*leaves, targets(), temperature=0.6, **options)
        scalars = (one.loss, (value * 2 - logprob).sum(), plain.sum())
        grads = [torch.autograd.grad(scalar, leaves) for scalar in scalars]
        results[kernel] = [*scalars, *grads[0], *grads[1], *grads[2]]
        assert (ran["gradient_blocks"], ran["reduce_rows"]) == (
            (9, 9) if kernel == "triton" else (0, 0)
        )
    torch.testing.assert_close(results["triton"], results["torch"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(results["triton"][0], results["triton"][1])


def test_float64_and_topk_are_the_torch_paths(ran):
    for kind, dtype in (("topk", torch.float32), ("reverse_kl", torch.float64)):
        pairs = [
            value_and_gradient(
                lambda z, k=kernel, d=kind, t=dtype: both(z, sample(1, dtype=t), d, k, topk=5),
                sample(0, dtype=dtype),
                sample(2, 2 * T),
            )
            for kernel in ("triton", "torch")
        ]
        torch.testing.assert_close(pairs[0], pairs[1], rtol=0, atol=0)
    assert not ran


def test_no_tokens():
    logits = torch.zeros(0, WIDTH, device=DEVICE, requires_grad=True)
    none = torch.zeros(0, device=DEVICE).long()
    pair = vocab_parallel_logprob_and_divergence(logits, none, logits.detach(), kernel="triton")
    assert [part.shape for part in pair] == [(0,), (0,)]
    sum(pair).sum().backward()
    assert logits.grad.shape == (0, WIDTH)
