"""The head fused with the projection gives what the head gives on explicit logits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from scope_megatron.objective import Streams
from tests.support.heads import (
    fused_logprob,
    fused_logprob_and_divergence,
    fused_loss,
    vocab_parallel_logprob,
    vocab_parallel_logprob_and_divergence,
)
from tests.support.losses import policy_loss
from tests.support.memory import peak_memory

T, H, H_TEACHER, WIDTH, VOCAB = 7, 5, 6, 24, 19
KINDS = ["reverse_kl", "forward_kl", "jsd", "topk"]
SETTINGS = {"temperature": 0.6, "teacher_temperature": 1.3, "beta": 0.3, "topk": 5}
TARGETS = torch.tensor([0, 18, 5, 5, 11, 17, 1])


def sample(seed: int, *shape: int, dtype=torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def student(dtype=torch.float64) -> tuple[Tensor, Tensor]:
    hidden, weight = sample(0, T, H, dtype=dtype), sample(1, WIDTH, H, dtype=dtype)
    return hidden.requires_grad_(), weight.requires_grad_()


def teacher(dtype=torch.float64) -> tuple[Tensor, Tensor]:
    return sample(2, T, H_TEACHER, dtype=dtype), sample(3, WIDTH, H_TEACHER, dtype=dtype)


def unfused(hidden: Tensor, weight: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    theirs = teacher(hidden.dtype)
    return vocab_parallel_logprob_and_divergence(
        hidden @ weight.t(), TARGETS, theirs[0] @ theirs[1].t(), kind=kind, vocab_size=VOCAB,
        **SETTINGS,
    )  # fmt: skip


def token_loss(logprob: Tensor, divergence: Tensor | None, rows: slice) -> Tensor:
    """SCOPE's loss with both paths, its ratio to another policy and its clip."""
    wrong = (torch.arange(T) % 3 == 0).to(logprob.dtype)
    weights = torch.linspace(0.5, 2, T, dtype=logprob.dtype)
    streams = Streams(mle=((1 - wrong) * weights)[rows], kl=(wrong * weights)[rows])
    old = sample(4, T)[rows] - 3.0
    return policy_loss(
        logprob, old.to(logprob.dtype), streams, divergence=divergence, teacher_logprob=old,
        clip_eps=0.2,
    )  # fmt: skip


def gradients(loss: Tensor, leaves: tuple[Tensor, ...]) -> list[Tensor]:
    return list(torch.autograd.grad(loss, leaves))


def assert_close(got, want, atol=1e-12) -> None:
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize("kind", KINDS)
def test_fused_equals_the_head_on_logits(kind, chunk):
    upstream = sample(5, 2, T)
    leaves = student()
    pair = fused_logprob_and_divergence(
        *leaves, TARGETS, teacher(), kind=kind, vocab_size=VOCAB, chunk=chunk, **SETTINGS
    )
    want = unfused(*leaves, kind)
    assert_close(pair, want)
    got = gradients((torch.stack(pair) * upstream).sum(), leaves)
    assert_close(got, gradients((torch.stack(want) * upstream).sum(), leaves))
    assert not got[1][VOCAB:].any() and got[1][:VOCAB].any()


@pytest.mark.parametrize("chunk", [3, 100])
def test_fused_logprob_equals_the_head_on_logits(chunk):
    leaves = student()
    got = fused_logprob(*leaves, TARGETS, temperature=0.6, vocab_size=VOCAB, chunk=chunk)
    want = vocab_parallel_logprob(
        leaves[0] @ leaves[1].t(), TARGETS, temperature=0.6, vocab_size=VOCAB
    )
    assert_close([got], [want])
    assert_close(gradients(got @ sample(5, T), leaves), gradients(want @ sample(5, T), leaves))


@pytest.mark.parametrize("chunk", [2, 100])
@pytest.mark.parametrize("kind", [None, *KINDS])
def test_one_pass_loss_equals_the_loss_on_logits(kind, chunk):
    leaves = student()
    both = {"teacher": teacher(), "kind": kind} if kind else {}
    ours = fused_loss(*leaves, TARGETS, token_loss, vocab_size=VOCAB, chunk=chunk, **both,
                      **SETTINGS)  # fmt: skip
    logprob, divergence = unfused(*leaves, kind or "reverse_kl")
    divergence = divergence if kind else None
    want = token_loss(logprob, divergence, slice(None))
    assert_close([ours.loss, ours.logprob], [want, logprob])
    assert (ours.divergence is None) == (kind is None)
    assert (ours.teacher_logprob is None) == (kind in (None, "topk"))
    if ours.teacher_logprob is not None:
        theirs = (teacher()[0] @ teacher()[1].t())[:, :VOCAB] / SETTINGS["teacher_temperature"]
        want_theirs = theirs.log_softmax(-1).gather(1, TARGETS[:, None])[:, 0]
        assert_close([ours.teacher_logprob], [want_theirs])
    assert_close(gradients(ours.loss * 1.7, leaves), gradients(want * 1.7, leaves))


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind):
    settings = {"kind": kind, "vocab_size": VOCAB, "chunk": 3, **SETTINGS}
    assert torch.autograd.gradcheck(
        lambda h, w: fused_logprob_and_divergence(h, w, TARGETS, teacher(), **settings), student()
    )

    def smooth(logprob: Tensor, divergence: Tensor | None, rows: slice) -> Tensor:
        assert divergence is not None
        return (logprob.exp() * sample(5, T)[rows] + divergence**2).sum()

    def loss(*leaves: Tensor) -> Tensor:
        return fused_loss(*leaves, TARGETS, smooth, teacher=teacher(), **settings).loss

    leaves = student()
    grads = gradients(loss(*leaves), leaves)
    for seed in range(6, 12):  # its graph can be walked only once, which gradcheck does not allow
        steps = [1e-6 * sample(seed, *leaf.shape) for leaf in leaves]
        ahead = loss(*(leaf + step for leaf, step in zip(leaves, steps, strict=True)))
        behind = loss(*(leaf - step for leaf, step in zip(leaves, steps, strict=True)))
        want = sum((grad * step).sum() for grad, step in zip(grads, steps, strict=True))
        torch.testing.assert_close((ahead - behind) / 2, want, rtol=1e-6, atol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_accumulates_in_float32(kind):
    """The one-pass loss, on bf16 weights and hidden states, against float64 on the same values."""
    upstream = sample(5, T)

    def loss(logprob: Tensor, divergence: Tensor | None, rows: slice) -> Tensor:
        return (logprob + divergence) @ upstream[rows].to(logprob.dtype)

    got, want = [], []
    for dtype, out in ((torch.bfloat16, got), (torch.float64, want)):
        leaves = [x.detach().bfloat16().to(dtype).requires_grad_() for x in student()]
        theirs = tuple(x.bfloat16().to(dtype) for x in teacher())
        ours = fused_loss(*leaves, TARGETS, loss, teacher=theirs, kind=kind, chunk=3, topk=5)
        out += [ours.loss, *gradients(ours.loss, leaves)]
    assert [x.dtype for x in got] == [torch.float32, torch.bfloat16, torch.bfloat16]
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=0.05, atol=0.1)


def test_an_embedding_tied_to_the_output_gets_both_gradients():
    def loss(weight: Tensor, fused: bool) -> Tensor:
        hidden = torch.tanh(weight[TARGETS])
        if fused:
            return fused_loss(hidden, weight, TARGETS, lambda logp, _, rows: logp.sum()).loss
        return (hidden @ weight.t()).log_softmax(-1).gather(1, TARGETS[:, None]).sum()

    weight = sample(1, WIDTH, H).requires_grad_()
    assert_close(
        gradients(loss(weight, True), (weight,)), gradients(loss(weight, False), (weight,))
    )


def test_only_what_requires_a_gradient_gets_one():
    hidden, weight = student()
    for frozen in (0, 1):
        leaves = [hidden, weight]
        leaves[frozen] = leaves[frozen].detach()
        for value in (
            fused_loss(*leaves, TARGETS, token_loss).loss,
            fused_logprob(*leaves, TARGETS).sum(),
        ):
            (grad,) = gradients(value, (leaves[1 - frozen],))
            assert grad.any()
    with torch.no_grad():
        assert not fused_loss(hidden, weight, TARGETS, token_loss).loss.requires_grad


def test_weights_of_zero_and_no_tokens_still_have_a_graph():
    hidden, weight = student()
    for tokens in (T, 0):
        value = fused_loss(
            hidden[:tokens], weight, TARGETS[:tokens], lambda logp, _, rows: logp.detach().sum() * 0
        )
        pair = fused_logprob_and_divergence(
            hidden[:tokens], weight, TARGETS[:tokens], tuple(x[:tokens] for x in teacher()[:1])
            + teacher()[1:], kind="topk",  topk=3,
        )  # fmt: skip
        for loss in (value.loss, sum(pair).sum() * 0):
            assert not any(grad.any() for grad in gradients(loss, (hidden, weight)))


def test_the_gradient_is_given_once():
    hidden, weight = student()
    loss = fused_loss(hidden, weight, TARGETS, token_loss).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        loss.backward()


@pytest.mark.parametrize("one_pass", [True, False])
def test_memory_grows_with_the_tokens_by_hidden_states_alone(one_pass):
    """4 times the tokens: a few vectors [T] and one T x H more, nothing near T x V."""
    width, size, chunk = 2048, 16, 32
    weight, their_weight = (sample(seed, width, size).requires_grad_() for seed in (1, 3))
    peaks = {}
    for tokens in (128, 512):
        hidden, theirs = sample(0, tokens, size).requires_grad_(), sample(2, tokens, size)
        targets = torch.arange(tokens)

        def work(hidden=hidden, theirs=theirs, targets=targets):
            frozen = (theirs, their_weight)
            if one_pass:
                loss = fused_loss(
                    hidden, weight, targets, lambda p, d, rows: (d - p).sum(), teacher=frozen,
                    chunk=chunk,
                ).loss  # fmt: skip
            else:
                pair = fused_logprob_and_divergence(hidden, weight, targets, frozen, chunk=chunk)
                loss = (pair[1] - pair[0]).sum()
            return torch.autograd.grad(loss, (hidden, weight))

        peaks[tokens] = peak_memory(work)
    blocks = 2 * chunk * width * 8
    assert blocks < peaks[128] < 2 * (blocks + 2 * width * size * 8)
    assert peaks[512] - peaks[128] < (512 - 128) * 8 * (2 * size + 32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": torch.zeros(T, H + 1)}, "student's hidden states"),
        ({"teacher": (torch.zeros(T, H), torch.zeros(WIDTH, H_TEACHER))}, "teacher's hidden"),
        ({"teacher": (torch.zeros(T, H), torch.zeros(WIDTH + 1, H))}, "padded to one width"),
        ({"targets": torch.full((T,), WIDTH)}, "outside the vocabulary"),
        ({"chunk": 0}, "chunk"),
    ],
)
def test_refusals(change, message):
    hidden, weight = student()
    good = {"hidden": hidden, "weight": weight, "targets": TARGETS, "teacher": teacher()}
    with pytest.raises(ValueError, match=message):
        fused_logprob_and_divergence(**{**good, **change})
