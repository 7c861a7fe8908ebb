"""The loss head against plain float64 torch, on one process (tests/distributed has the rest)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from scope_megatron.objective import Shard, Spec, Streams
from scope_megatron.objective.head import statistics as vocab
from scope_megatron.objective.head.shard import check
from tests.support.heads import (
    vocab_parallel_divergence,
    vocab_parallel_logprob,
    vocab_parallel_logprob_and_divergence,
    vocab_parallel_scores,
)
from tests.support.losses import policy_loss

T, WIDTH, VOCAB = 7, 24, 19
KINDS = ["reverse_kl", "forward_kl", "jsd", "topk"]
SETTINGS = {"temperature": 0.6, "teacher_temperature": 1.3, "beta": 0.3, "topk": 5}


def sample(seed: int, scale: float = 3.0, width: int = WIDTH) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(T, width, generator=generator, dtype=torch.float64)


def some_targets() -> Tensor:
    return torch.tensor([0, 18, 5, 5, 11, 17, 1])


def reference_logprob(logits: Tensor, targets: Tensor, vocab: int, temperature: float) -> Tensor:
    return torch.stack(
        [
            torch.distributions.Categorical(logits=row[:vocab] / temperature).log_prob(target)
            for row, target in zip(logits, targets, strict=True)
        ]
    )


def reference_divergence(
    logits: Tensor,
    teacher: Tensor,
    kind: str,
    vocab: int,
    *,
    temperature,
    teacher_temperature,
    beta,
    topk,
) -> Tensor:
    """The definitions, row by row, on explicit probabilities in float64."""
    out = []
    for z, zt in zip(logits.double()[:, :vocab], teacher.double()[:, :vocab], strict=True):
        if kind == "topk":
            best = zt.argsort(descending=True)[:topk]
            z, zt = z[best], zt[best]
        p, q = torch.softmax(z / temperature, 0), torch.softmax(zt / teacher_temperature, 0)
        mixture = beta * q + (1 - beta) * p
        out.append(
            {
                "reverse_kl": lambda p=p, q=q: (p * (p / q).log()).sum(),
                "topk": lambda p=p, q=q: (p * (p / q).log()).sum(),
                "forward_kl": lambda p=p, q=q: (q * (q / p).log()).sum(),
                "jsd": lambda p=p, q=q, m=mixture: (
                    beta * (q * (q / m).log()).sum() + (1 - beta) * (p * (p / m).log()).sum()
                ),
            }[kind]()
        )
    return torch.stack(out)


def value_and_gradient(function, logits: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor]:
    leaf = logits.clone().requires_grad_()
    value = function(leaf)
    (grad,) = torch.autograd.grad(value, leaf, upstream)
    return value.detach(), grad


@pytest.mark.parametrize("vocab", [VOCAB, WIDTH, 1])
@pytest.mark.parametrize("chunk", [1, 3, 1024])
def test_logprob_matches_the_reference(vocab, chunk):
    logits, targets, upstream = sample(0), some_targets().clamp_max(vocab - 1), sample(1)[:, 0]
    value, grad = value_and_gradient(
        lambda z: vocab_parallel_logprob(
            z, targets, None, temperature=0.6, vocab_size=vocab, chunk=chunk
        ),
        logits,
        upstream,
    )
    want, slope = value_and_gradient(
        lambda z: reference_logprob(z, targets, vocab, 0.6), logits, upstream
    )
    torch.testing.assert_close(value, want, rtol=0, atol=1e-12)
    torch.testing.assert_close(grad, slope, rtol=0, atol=1e-12)
    assert not grad[:, vocab:].any()


@pytest.mark.parametrize("vocab", [VOCAB, WIDTH])
@pytest.mark.parametrize("kind", KINDS)
def test_divergence_matches_the_reference(kind, vocab):
    logits, teacher, upstream = sample(0), sample(2), sample(1)[:, 0]
    teacher[:, VOCAB:] = 50.0  # padding that leaks would own all the probability
    if vocab == WIDTH:
        teacher[:, VOCAB:] = -3.0
    value, grad = value_and_gradient(
        lambda z: vocab_parallel_divergence(
            z, teacher, None, kind=kind, vocab_size=vocab, chunk=3, **SETTINGS
        ),
        logits,
        upstream,
    )
    want, slope = value_and_gradient(
        lambda z: reference_divergence(z, teacher, kind, vocab, **SETTINGS), logits, upstream
    )
    torch.testing.assert_close(value, want, rtol=0, atol=1e-11)
    torch.testing.assert_close(grad, slope, rtol=0, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck_of_both_outputs_together(kind):
    logits = sample(0).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z: vocab_parallel_logprob_and_divergence(
            z, some_targets(), sample(2), None, kind=kind, vocab_size=VOCAB, chunk=4, **SETTINGS
        ),
        (logits,),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_together_is_the_same_as_apart(kind):
    logits, teacher = sample(0), sample(2)
    options = {"kind": kind, "vocab_size": VOCAB, **SETTINGS}

    def together(z):
        pair = vocab_parallel_logprob_and_divergence(z, some_targets(), teacher, None, **options)
        return torch.cat(pair)

    def apart(z):
        logprob = vocab_parallel_logprob(z, some_targets(), None, temperature=0.6, vocab_size=VOCAB)
        return torch.cat([logprob, vocab_parallel_divergence(z, teacher, None, **options)])

    upstream = sample(1)[:, :2].flatten()
    got, want = (value_and_gradient(f, logits, upstream) for f in (together, apart))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-13)


def test_scores_and_entropy():
    logits = sample(0)
    scores = vocab_parallel_scores(
        logits, some_targets(), None, temperature=0.6, vocab_size=VOCAB, chunk=2, with_entropy=True
    )
    p = torch.softmax(logits[:, :VOCAB] / 0.6, -1)
    torch.testing.assert_close(scores.entropy, -(p * p.log()).sum(-1), rtol=0, atol=1e-12)
    want = reference_logprob(logits, some_targets(), VOCAB, 0.6)
    torch.testing.assert_close(scores.logprob, want, rtol=0, atol=1e-12)
    assert vocab_parallel_scores(logits, some_targets()).entropy is None


@pytest.mark.parametrize("kind", [None, *KINDS])
def test_bfloat16_logits_are_accumulated_in_float32(kind):
    """The error is that of float32 arithmetic on the very same logits, plus bf16 gradients."""
    logits, teacher = sample(0, width=4000), sample(2, width=4000)
    logits, teacher = logits.bfloat16(), teacher.bfloat16()
    settings = {**SETTINGS, "topk": 64}
    upstream = sample(1)[:, 0]

    def head(z):
        if kind is None:
            return vocab_parallel_logprob(z, some_targets(), None, temperature=0.6)
        return vocab_parallel_divergence(z, teacher, None, kind=kind, **settings)

    def reference(z):
        if kind is None:
            return reference_logprob(z, some_targets(), 4000, 0.6)
        return reference_divergence(z, teacher, kind, 4000, **settings)

    if kind == "topk":  # no tie at the last place, which may be broken either way
        teacher = sample(2, width=4000).argsort(-1).argsort(-1).double().div(200).float()
    value, grad = value_and_gradient(head, logits, upstream.float())
    want, slope = value_and_gradient(reference, logits.double(), upstream)
    assert (value.dtype, grad.dtype) == (torch.float32, torch.bfloat16)
    torch.testing.assert_close(value.double(), want, rtol=3e-6, atol=3e-6)
    torch.testing.assert_close(grad.double(), slope, rtol=5e-3, atol=1e-7)


@pytest.mark.parametrize("offset", [1e4, -1e4])
@pytest.mark.parametrize("kind", [None, *KINDS])
def test_large_logits_keep_float32_precision(kind, offset):
    """A shared offset of 1e4 costs what its rounding costs, and nothing more."""
    logits, teacher = (sample(0) + offset).float(), (sample(2) - offset).float()
    upstream = sample(1)[:, 0]

    def head(z):
        if kind is None:
            return vocab_parallel_logprob(z, some_targets(), None, temperature=0.6)
        return vocab_parallel_divergence(z, teacher, None, kind=kind, **SETTINGS)

    def reference(z):
        if kind is None:
            return reference_logprob(z, some_targets(), WIDTH, 0.6)
        return reference_divergence(z, teacher, kind, WIDTH, **SETTINGS)

    value, grad = value_and_gradient(head, logits, upstream.float())
    want, slope = value_and_gradient(reference, logits.double(), upstream)
    torch.testing.assert_close(value.double(), want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grad.double(), slope, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_of_both_extremes_are_finite(kind):
    logits, teacher = torch.zeros(2, 8), torch.zeros(2, 8)
    logits[:, 0], logits[:, 1], teacher[:, 1], teacher[:, 0] = 1e4, -1e4, 1e4, -1e4
    logits.requires_grad_()
    pair = vocab_parallel_logprob_and_divergence(
        logits, torch.tensor([0, 1]), teacher, None, kind=kind, topk=4
    )
    assert pair[0].tolist() == [0.0, -2e4]
    # p and q are one-hot, on tokens 0 and 1; the teacher's best 4 are token 1 and three zeros
    want = {"jsd": math.log(2), "topk": 1e4 - math.log(3)}.get(kind, 2e4)
    assert pair[1].tolist() == pytest.approx([want, want], rel=1e-6)
    (grad,) = torch.autograd.grad(sum(pair).sum(), logits)
    assert grad.isfinite().all()


@pytest.mark.parametrize("kind", [None, *KINDS])
def test_tokens_forbidden_by_minus_infinity(kind):
    """Both models forbid some tokens, the student others on top: as if their columns were gone."""
    forbidden, only_student = [1, 2, 3, 12], [7]
    kept = [c for c in range(VOCAB) if c not in forbidden]
    logits, teacher, upstream = sample(0), sample(2), sample(1)[:, 0]
    logits[:, forbidden + only_student] = teacher[:, forbidden] = -math.inf
    targets = torch.tensor([0, 18, 5, 5, 11, 17, 0])

    def head(z):
        if kind is None:
            return vocab_parallel_logprob(z, targets, None, temperature=0.6, vocab_size=VOCAB)
        return vocab_parallel_divergence(z, teacher, kind=kind, vocab_size=VOCAB, **SETTINGS)

    def reference(z):
        if kind is None:
            return reference_logprob(z, targets, VOCAB, 0.6)
        z = z[:, kept].clamp_min(-300.0)  # forbidden enough, and no log(0)
        return reference_divergence(z, teacher[:, kept], kind, len(kept), **SETTINGS)

    value, grad = value_and_gradient(head, logits, upstream)
    if kind == "forward_kl":
        assert (value > 1e3).all()  # the teacher wants what the student forbids
        return
    want, slope = value_and_gradient(reference, logits, upstream)
    torch.testing.assert_close(value, want, rtol=0, atol=1e-11)
    torch.testing.assert_close(grad, slope.nan_to_num(0.0), rtol=0, atol=1e-11)


@pytest.mark.parametrize("kind", ["reverse_kl", "forward_kl", "topk"])
def test_a_shard_whose_tokens_are_all_forbidden(kind):
    """Two shards of one process, the second all -inf in both models: as if it were not there."""
    logits, teacher, targets = sample(0), sample(2), some_targets() % 12
    logits[:, 12:] = teacher[:, 12:] = -math.inf
    spec = Spec(divergence=kind, topk=5)
    local = []
    for rank in (0, 1):
        shard = Shard(None, rank, 12 * rank, 12, 12, WIDTH)
        columns = slice(12 * rank, 12 * rank + 12)
        args = (logits[:, columns], teacher[:, columns], targets, shard, spec)
        local.append(vocab.local_statistics(*args))
    parts = torch.stack([part for part, _ in local])
    stats = vocab.merge_statistics(parts, local[1][1], shard, spec)
    want = vocab_parallel_logprob_and_divergence(
        logits[:, :12], targets, teacher[:, :12], kind=kind, topk=5
    )
    torch.testing.assert_close(stats.logprob(spec), want[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(stats.divergence, want[1], rtol=0, atol=1e-12)


def test_rows_without_a_scored_teacher_do_not_spread():
    """NaN teacher logits on a row outside the kl stream reach neither loss nor gradient."""
    for kind in KINDS:
        grads = []
        for poison in (0.0, math.nan):
            teacher = sample(2)
            teacher[3] += poison
            logits = sample(0).requires_grad_()
            logprob, divergence = vocab_parallel_logprob_and_divergence(
                logits, some_targets(), teacher, None, kind=kind, vocab_size=VOCAB, **SETTINGS
            )
            kl = torch.ones(T, dtype=torch.float64)
            kl[3] = 0
            streams = Streams(mle=1 - kl, kl=kl)
            loss = policy_loss(logprob, logprob.detach(), streams, divergence=divergence)
            grads.append(torch.autograd.grad(loss, logits)[0])
        torch.testing.assert_close(grads[1], grads[0], rtol=0, atol=0)
        assert grads[1][3].abs().max() > 0  # it is on the likelihood path


def test_logits_are_kept_unless_the_backward_may_have_them():
    grads = []
    for inplace in (False, True):
        leaf = sample(0).requires_grad_()
        logits = leaf * 1.0
        pair = vocab_parallel_logprob_and_divergence(
            logits, some_targets(), sample(2), vocab_size=VOCAB, inplace_backward=inplace, chunk=3
        )
        torch.testing.assert_close(logits, leaf, rtol=0, atol=0)
        sum(pair).sum().backward()
        torch.testing.assert_close(logits, leaf.grad if inplace else leaf, rtol=0, atol=0)
        grads.append(leaf.grad)
    torch.testing.assert_close(grads[1], grads[0], rtol=0, atol=0)


def test_overwritten_logits_are_an_error_to_whoever_still_needs_them():
    logits = sample(0).requires_grad_() * 1.0
    logprob = vocab_parallel_logprob(logits, some_targets(), inplace_backward=True)
    squares = logits.square().sum()
    logprob.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        squares.backward()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_logits_that_the_forward_may_have(dtype):
    """The gradient comes from the exponentials that the forward left, but for rounded logits."""
    grads = []
    for inplace in (False, True):
        leaf = sample(0).to(dtype).requires_grad_()
        logits = leaf * 1.0
        values = vocab_parallel_logprob(
            logits,
            some_targets(),
            temperature=0.6,
            vocab_size=VOCAB,
            inplace_forward=inplace,
            chunk=3,
        )
        kept = torch.equal(logits, leaf)
        assert kept is not (inplace and dtype == torch.float64)
        (values * torch.arange(T)).sum().backward()
        grads.append(leaf.grad)
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-12, atol=1e-14)


def test_targets_on_a_gpu_are_not_asked_for_their_values() -> None:
    """Packs were checked on the host: here the answer would be waited for in every microbatch."""
    with FakeTensorMode():  # knows CUDA's rules without a device; it has no values to tell
        logits = torch.empty(T, WIDTH, device="cuda")
        targets, fewer = (torch.empty(n, dtype=torch.int64, device="cuda") for n in (T, T - 1))
        check(logits, None, targets, Shard.of(WIDTH, VOCAB, None), Spec())
        with pytest.raises(ValueError, match="targets must be"):
            check(logits, None, fewer, Shard.of(WIDTH, VOCAB, None), Spec())


def test_no_tokens():
    logits, none = torch.zeros(0, WIDTH, requires_grad=True), torch.zeros(0).long()
    pair = vocab_parallel_logprob_and_divergence(logits, none, logits.detach(), topk=3, kind="topk")
    assert [part.shape for part in pair] == [(0,), (0,)]
    sum(pair).sum().backward()
    assert logits.grad.shape == (0, WIDTH)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher_logits": torch.zeros(T, 32)}, r"student 24, teacher 32 columns"),
        ({"vocab_size": 25}, "vocab_size 25 does not fit"),
        ({"targets": torch.full((T,), VOCAB)}, r"\[19, 19\], outside the vocabulary of 19"),
        ({"targets": torch.full((T,), -100)}, "outside the vocabulary"),
        ({"targets": torch.zeros(T + 1).long()}, "targets must be"),
        ({"kind": "kl"}, "must be one of reverse_kl"),
        ({"kind": "topk", "topk": 20}, r"objective\.topk"),
        ({"kind": "jsd", "beta": 1.0}, r"objective\.jsd_beta"),
        ({"temperature": 0.0}, r"rollout\.temperature"),
        ({"logits": torch.zeros(1, T, WIDTH)}, "logits must be"),
        ({"chunk": 0}, "chunk"),
    ],
)
def test_refusals(change, message):
    good = {
        "logits": sample(0),
        "teacher_logits": sample(2),
        "targets": some_targets(),
        "vocab_size": VOCAB,
    }
    with pytest.raises(ValueError, match=message):
        vocab_parallel_logprob_and_divergence(**{**good, **change})
