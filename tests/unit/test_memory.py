"""Memory by tenant and phase, counted on a CPU."""

from __future__ import annotations

import pytest
import torch

from scope_megatron.parallel import memory
from scope_megatron.parallel.memory import PhaseMemory, Tenants, TensorPeak

MIB = 2**20


def mib(count: int) -> torch.Tensor:
    return torch.zeros(count * MIB, dtype=torch.uint8)


def test_a_storage_counts_once_and_for_the_first_that_holds_it() -> None:
    shared, own = mib(2), mib(1)
    tenants = Tenants()
    tenants.add("student", lambda: [shared[:MIB], shared[MIB:]])
    tenants.add("optimizer", lambda: [shared, own, torch.empty(0)])
    tenants.add("elsewhere", lambda: [torch.empty(MIB, device="meta")])
    assert tenants.held() == {"student": 2 * MIB, "optimizer": MIB, "elsewhere": 0}


def test_phases_tell_tenants_activations_and_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "all_max", list)
    held = [mib(4)]
    tenants = Tenants()
    tenants.add("student", lambda: held)
    phases = PhaseMemory(tenants, watch=True)
    phases.enter("score")
    (held[0] + 1).sum()  # 4 MiB besides, and a number
    phases.leave("score")
    held.append(mib(8))
    phases.enter("train")
    phases.leave("train")
    values = phases.pop()
    assert values["memory/score/student_gib"] == 4 / 1024
    assert values["memory/score/activations_gib"] == pytest.approx(4 / 1024, rel=1e-3)
    assert values["memory/train/student_gib"] == 12 / 1024
    assert values["memory/train/activations_gib"] == 0.0
    assert values["memory/peak_gib"] == 12 / 1024
    assert phases.describe_peak() == "12.0 MiB in train: student 12.0 MiB"
    assert phases.pop() == {}


def test_without_watching_a_cpu_tells_tenants_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "all_max", list)
    tenants = Tenants()
    tenants.add("student", lambda: [mib(1)])
    phases = PhaseMemory(tenants)
    phases.enter("score")
    phases.leave("score")
    assert set(phases.pop()) == {"memory/score/student_gib", "memory/peak_gib"}


def test_a_peak_forgets_what_is_freed_and_leaves_out_what_was_there() -> None:
    before = mib(16)
    with TensorPeak() as watched:
        for _ in range(3):
            made = before[: 2 * MIB] + 1
            del made
        before.add_(1)
    assert 2 * MIB <= watched.peak < 3 * MIB
    assert watched.now < MIB
