"""The loss benchmark runs, and its memory count is right."""

from __future__ import annotations

import torch

from benchmarks.bench_loss import Case, run
from benchmarks.loss_report import verdicts
from tests.support.memory import peak_memory


def test_benchmark_of_one_process_compares_methods_that_agree() -> None:
    (case,) = run([Case(vocab=512, tokens=32, hidden=16, rounds=1, world=1, device="cpu")])
    assert case.largest_gradient_gap < 1e-4
    assert set(case.collectives.values()) == {0}
    assert case.extra_bytes["straightforward"] > case.extra_bytes["on_logits"] > 512 * 32 * 4
    assert len(verdicts(case)) == 4


def test_peak_memory_counts_what_lives_at_once() -> None:
    given = torch.zeros(1000)  # not made by the work

    def work() -> torch.Tensor:
        first = given + 1
        view = first[10:]
        second = view * 2  # 4000 + 3960 bytes
        del first, view
        third = second + 1  # 2 x 3960
        return third.add_(given[10:])

    if torch.cuda.is_available():
        return  # counted by the allocator there
    assert peak_memory(work) == 4 * (1000 + 990)
