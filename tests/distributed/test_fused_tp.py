"""The fused head on 2 and 4 vocabulary shards gives what one process gives, gradients included."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor

from scope_megatron.objective import Streams
from tests.distributed.test_loss_tp import SETTINGS, SHAPES, counted
from tests.support.harness import run_distributed_test
from tests.support.heads import fused_logprob, fused_logprob_and_divergence, fused_loss
from tests.support.losses import policy_loss

T, H, CHUNK = 13, 6, 5
CASES = ["logprob", "reverse_kl", "forward_kl", "jsd", "topk", "one-pass", "unreduced"]
BLOCKS = 3
# collectives of (forward, backward)
EXPECTED_COLLECTIVES = {case: (1, 1) for case in CASES}
EXPECTED_COLLECTIVES |= {"jsd": (2, 1), "one-pass": (BLOCKS, 1), "unreduced": (1, 0)}


def head(case: str, leaves: list[Tensor], teacher, targets: Tensor, group, vocab: int) -> Tensor:
    """A scalar."""
    common = {"vocab_size": vocab, "chunk": CHUNK, "temperature": 0.6}
    upstream = torch.linspace(-1, 1, T, dtype=torch.float64)
    if case in ("logprob", "unreduced"):
        reduce_hidden = case == "logprob"
        logprob = fused_logprob(*leaves, targets, group, reduce_hidden=reduce_hidden, **common)
        return logprob @ upstream
    if case == "one-pass":
        wrong = (torch.arange(T) % 3 == 0).double()

        def loss(logprob: Tensor, divergence: Tensor | None, rows: slice) -> Tensor:
            streams = Streams(mle=(1 - wrong)[rows] / T, kl=wrong[rows] / T)
            return policy_loss(logprob, logprob.detach() - 0.1, streams, divergence=divergence)

        return fused_loss(
            *leaves, targets, loss, group, teacher=teacher, **{**SETTINGS, **common}
        ).loss
    pair = fused_logprob_and_divergence(
        *leaves, targets, teacher, group, kind=case, **{**SETTINGS, **common}
    )
    return (pair[0] - pair[1]) @ upstream


def run_case(case: str, shape: str, rank: int, size: int, group) -> dict:
    width, vocab, scale = SHAPES[shape]
    generator = torch.Generator().manual_seed(5)

    def sample(*dims: int) -> Tensor:
        return torch.randn(*dims, generator=generator, dtype=torch.float64)

    hidden, weight = scale * sample(T, H), sample(width, H)
    their_hidden, their_weight = scale * sample(T, H + 1), sample(width, H + 1)
    targets = torch.randint(vocab, (T,), generator=generator)
    columns = slice(rank * width // size, (rank + 1) * width // size)
    leaves = [hidden.requires_grad_(), weight[columns].clone().requires_grad_()]
    teacher = (their_hidden, their_weight[columns])
    calls = Counter()
    value = counted(calls, "forward", lambda: head(case, leaves, teacher, targets, group, vocab))
    counted(calls, "backward", value.backward)
    return {
        "value": value.detach(),
        "hidden": leaves[0].grad,
        "weight": leaves[1].grad,
        "calls": (calls["forward"], calls["backward"]),
    }


def every_case(rank: int, size: int) -> dict:
    group = torch.distributed.new_group(list(range(size))) if size > 1 else None
    return {
        (case, shape): run_case(case, shape, rank, size, group)
        for case in CASES
        for shape in SHAPES
    }


@pytest.fixture(scope="module")
def single() -> dict:
    return every_case(0, 1)


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request) -> list[dict]:
    return run_distributed_test(every_case, request.param)


def close(got: Tensor, want: Tensor) -> None:
    scale = max(1.0, want.abs().max().item())
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10 * scale)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("case", CASES)
def test_shards_agree_with_one_process(single, ranks, case, shape):
    want = single[case, shape]
    got = [rank[case, shape] for rank in ranks]
    for rank in got:
        close(rank["value"], want["value"])
        if case != "unreduced":
            close(rank["hidden"], want["hidden"])
    if case == "unreduced":  # parts, which the caller sums
        close(torch.stack([rank["hidden"] for rank in got]).sum(0), want["hidden"])
    close(torch.cat([rank["weight"] for rank in got]), want["weight"])
    assert shape == "huge" or want["hidden"].abs().max() > 0


@pytest.mark.parametrize("case", CASES)
def test_collectives(single, ranks, case):
    for rank in ranks:
        assert rank[case, "padded"]["calls"] == EXPECTED_COLLECTIVES[case]
    assert single[case, "padded"]["calls"] == (0, 0)
