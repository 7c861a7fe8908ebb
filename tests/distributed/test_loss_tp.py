"""The loss head on 2 and 4 vocabulary shards gives what one process gives, gradients included."""

from __future__ import annotations

import os
import signal
from collections import Counter

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from scope_megatron.objective import Streams
from tests.support.harness import DistributedTestError, run_distributed_test
from tests.support.heads import (
    vocab_parallel_divergence,
    vocab_parallel_logprob,
    vocab_parallel_logprob_and_divergence,
    vocab_parallel_scores,
)
from tests.support.losses import policy_loss

T = 13
COLLECTIVES = [name for name in dir(dist) if name.startswith(("all_", "reduce", "broadcast"))]
# name: (padded width over all ranks, vocabulary, scale of the logits)
# padded: half a shard of padding; empty: a rank (two at TP 4) with nothing but padding;
# thin: one column on each rank at TP 4
SHAPES = {
    "full": (24, 24, 3.0),
    "padded": (24, 19, 3.0),
    "empty": (24, 11, 3.0),
    "thin": (4, 4, 3.0),
    "huge": (24, 19, 1e4),
}
KINDS = ["reverse_kl", "forward_kl", "jsd", "topk", "entropy_kl"]
# topk on other tokens, and with a bucket for those that are not among them
CHOICES = ["student", "union", "intersection", "teacher+tail", "union+tail", "intersection+tail"]
SETTINGS = {"temperature": 0.6, "teacher_temperature": 1.3, "beta": 0.3, "topk": 3}
EXPECTED_COLLECTIVES = {
    "logprob": 1,
    "logprob-inplace": 1,
    "scores": 1,
    "reverse_kl": 1,
    "forward_kl": 1,
    "jsd": 2,
}
EXPECTED_COLLECTIVES |= {"topk": 1, "scope": 1, "entropy_kl": 1}
EXPECTED_COLLECTIVES |= dict.fromkeys(CHOICES, 1)


def head(case: str, logits: Tensor, teacher: Tensor, targets: Tensor, group, vocab: int) -> Tensor:
    """[T] (or a scalar) of one function; ``scope`` is the whole loss on a mix of both paths."""
    common = {"vocab_size": vocab, "chunk": 5}
    if case == "logprob":
        return vocab_parallel_logprob(logits, targets, group, temperature=0.6, **common)
    if case == "logprob-inplace":
        return vocab_parallel_logprob(
            logits, targets, group, temperature=0.6, inplace_forward=True, **common
        )
    if case == "scores":
        scores = vocab_parallel_scores(
            logits, targets, group, temperature=0.6, with_entropy=True, **common
        )
        return torch.cat([part.detach() for part in scores])
    if case in CHOICES:
        of, _, tail = case.partition("+")
        choice = {"kind": "topk", "topk_of": of, "topk_tail": bool(tail)}
        # few best tokens of 24 are rarely both sides'
        choice |= SETTINGS | {"topk": min(9, vocab - 1) if of == "intersection" else 3}
        return vocab_parallel_divergence(logits, teacher, group, **choice, **common)
    if case in KINDS:
        return vocab_parallel_divergence(logits, teacher, group, kind=case, **SETTINGS, **common)
    logprob, divergence = vocab_parallel_logprob_and_divergence(
        logits, targets, teacher, group, inplace_backward=True, **SETTINGS, **common
    )
    wrong = (torch.arange(T) % 3 == 0).to(logprob.dtype)
    streams = Streams(mle=(1 - wrong) / T, kl=wrong / T)
    return policy_loss(logprob, logprob.detach() - 0.1, streams, divergence=divergence)


def run_case(case: str, shape: str, rank: int, size: int, group, dtype=torch.float64) -> dict:
    """Value and gradient of one rank's shard, and the collectives of the two passes."""
    width, vocab, scale = SHAPES[shape]
    generator = torch.Generator().manual_seed(5)
    full, teacher = scale * torch.randn(2, T, width, generator=generator, dtype=torch.float64)
    targets = torch.randint(vocab, (T,), generator=generator)
    columns = slice(rank * width // size, (rank + 1) * width // size)
    shard = full[:, columns].to(dtype).clone().requires_grad_()
    calls = Counter()
    value = counted(
        calls,
        "forward",
        lambda: head(case, shard * 1.0, teacher[:, columns].to(dtype), targets, group, vocab),
    )
    grad = torch.zeros_like(shard)
    if value.requires_grad:
        upstream = torch.linspace(-1, 1, T, dtype=value.dtype) if value.dim() else None
        counted(calls, "backward", lambda: value.backward(upstream))
        grad = shard.grad
    return {"value": value.detach(), "grad": grad, "calls": dict(calls)}


def counted(calls: Counter, name: str, work):
    """Run ``work`` and count the torch.distributed collectives that it calls."""
    originals = {key: getattr(dist, key) for key in COLLECTIVES}
    try:
        for key, function in originals.items():
            setattr(dist, key, counting(calls, name, function))
        return work()
    finally:
        for key, function in originals.items():
            setattr(dist, key, function)


def counting(calls: Counter, name: str, function):
    def wrapper(*args, **kwargs):
        calls[name] += 1
        return function(*args, **kwargs)

    return wrapper


def every_case(rank: int, size: int) -> dict:
    """All cases in one process group: a subgroup, since the head must not use the default one."""
    group = dist.new_group(list(range(size))) if size > 1 else None
    cases = {
        (case, shape): run_case(case, shape, rank, size, group)
        for case in EXPECTED_COLLECTIVES
        for shape in SHAPES
    }
    cases["bfloat16"] = run_case("scope", "padded", rank, size, group, torch.bfloat16)
    return cases


@pytest.fixture(scope="module")
def single() -> dict:
    return every_case(0, 1)


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request) -> list[dict]:
    return run_distributed_test(every_case, request.param)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("case", EXPECTED_COLLECTIVES)
def test_shards_agree_with_one_process(single, ranks, case, shape):
    want = single[case, shape]
    scale = max(1.0, want["value"].abs().max().item())
    for rank in ranks:
        torch.testing.assert_close(
            rank[case, shape]["value"], want["value"], rtol=0, atol=1e-10 * scale
        )
    grad = torch.cat([rank[case, shape]["grad"] for rank in ranks], 1)
    scale = max(1.0, want["grad"].abs().max().item())
    torch.testing.assert_close(grad, want["grad"], rtol=0, atol=1e-10 * scale)
    assert (grad.abs().max() > 0) == (case != "scores")


@pytest.mark.parametrize("case", EXPECTED_COLLECTIVES)
def test_collectives_do_not_grow_with_chunks_and_the_backward_has_none(single, ranks, case):
    """T = 13 in chunks of 5: three chunks, one exchange."""
    for rank in ranks:
        assert rank[case, "padded"]["calls"] == {"forward": EXPECTED_COLLECTIVES[case]}
    assert single[case, "padded"]["calls"] == {}


def test_bfloat16_shards_agree_with_one_process(single, ranks):
    grad = torch.cat([rank["bfloat16"]["grad"] for rank in ranks], 1)
    assert grad.dtype == torch.bfloat16
    torch.testing.assert_close(grad, single["bfloat16"]["grad"], rtol=1e-2, atol=1e-7)
    for rank in ranks:
        torch.testing.assert_close(rank["bfloat16"]["value"], single["bfloat16"]["value"])
        assert rank["bfloat16"]["value"] == ranks[0]["bfloat16"]["value"]  # to the last bit


def fail_on_one_rank(rank: int, size: int) -> None:
    if rank == 1:
        raise ZeroDivisionError("the second rank fails")
    dist.barrier()


def hang_on_one_rank(rank: int, size: int) -> None:
    while rank == 1:
        pass
    dist.barrier()


def die_on_one_rank(rank: int, size: int) -> None:
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()


def test_harness_shows_the_failing_ranks_traceback_first():
    with pytest.raises(DistributedTestError, match=r"--- rank 1 ---[^$]*second rank fails") as info:
        run_distributed_test(fail_on_one_rank, 2, timeout=60)
    assert str(info.value).startswith("--- rank 1 ---")


def test_harness_reports_a_rank_that_was_killed():
    with pytest.raises(DistributedTestError, match="rank 1 died without a traceback, exit -9"):
        run_distributed_test(die_on_one_rank, 2, timeout=60)


def test_harness_ends_a_hang_and_shows_where_it_was():
    with pytest.raises(DistributedTestError, match=r"(?s)\[0, 1\] still ran.*in hang_on_one_rank"):
        run_distributed_test(hang_on_one_rank, 2, timeout=2)


def threads_of_the_server(rank: int, size: int) -> int:
    return len(os.listdir(f"/proc/{os.getppid()}/task"))


def test_harness_forks_ranks_from_a_process_of_one_thread():
    """Another thread would be gone in a rank, with the locks that it held."""
    assert run_distributed_test(threads_of_the_server, 1, timeout=60) == [1]
