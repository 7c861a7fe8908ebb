"""Search: what it returns runs and fits; large machines in seconds."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from scope_megatron.instruments.plan.layout import layout_problems
from scope_megatron.instruments.plan.memory import host_bytes
from scope_megatron.instruments.plan.search import search_layouts
from scope_megatron.instruments.plan.workload import ResponseLengths
from tests.unit.plan.cases import plan_of

LARGE = {"prompts": 4096, "responses": 32768}


@pytest.mark.parametrize(
    ("student", "teacher", "gpu", "gpus"),
    [
        ("Qwen/Qwen2.5-1.5B", "Qwen/Qwen2.5-7B", "h100", 8),
        ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-70B", "h100", 64),
        ("Qwen/Qwen3-30B-A3B", "Qwen/Qwen3-235B-A22B", "h100", 256),
        ("Qwen/Qwen3-235B-A22B", "example/moe-1T", "gb200", 2048),
    ],
)
def test_the_best_layouts_run_and_fit(student: str, teacher: str, gpu: str, gpus: int) -> None:
    base = plan_of(student, teacher, gpu, work=LARGE)
    found = search_layouts(base, gpus)
    assert found.plans
    for plan in found.plans:
        assert plan.layout.gpus == gpus and plan.fits
        assert list(layout_problems(plan.layout, plan.models.student, plan.models.teachers)) == []
        assert plan.work.prompts % plan.layout.data == 0
        assert host_bytes(plan.models, plan.layout) <= plan.gpu.host_memory
    seconds = [plan.time.total for plan in found.plans]
    assert seconds == sorted(seconds)


@pytest.mark.slow
def test_a_trillion_parameters_on_16384_gpus_in_seconds() -> None:
    base = plan_of("example/moe-1T", "example/moe-1T", "gb200", work=LARGE)
    begun = time.process_time()  # others may share the cores
    found = search_layouts(base, 16384)
    assert time.process_time() - begun < 30
    assert found.cuts > 100 and (found.plans or found.nearest is not None)


def test_what_lacks_least_is_named_where_nothing_fits() -> None:
    found = search_layouts(plan_of("Qwen/Qwen2.5-72B", "Qwen/Qwen2.5-72B"), 2)
    assert found.plans == [] and found.nearest is not None and found.nearest.over > 0


def test_sequences_are_cut_over_ranks_where_they_are_long() -> None:
    """128k tokens: whole they fit only with everything made again, or not at all."""
    short = search_layouts(plan_of(), 8)
    assert {plan.layout.context for plan in short.plans} == {1}
    lengths = ResponseLengths.lognormal(60000, 0.8, 131072, "test")
    work = {"lengths": lengths, "limit": 131072, "longest": 135168}
    long = search_layouts(plan_of("meta-llama/Llama-3.1-8B", None, work=work), 32)
    assert long.plans[0].layout.context > 1
    pad = long.plans[0].layout
    assert pad.microbatch >= 135168 + 2 * pad.context * pad.tensor - 1


def test_a_teacher_that_is_too_large_as_the_student_is_cut_gets_its_own_layout() -> None:
    found = search_layouts(plan_of("Qwen/Qwen2.5-1.5B", "Qwen/Qwen2.5-72B"), 16)
    best = found.plans[0].layout
    assert best.cuts_teacher_otherwise or best.teacher_offload
    assert best.of_teacher.tensor > best.tensor or best.teacher_offload


def test_the_search_changes_placement_not_what_is_learned() -> None:
    """Engines on GPUs of their own: one after the other as the configuration says, or ahead."""
    in_turn = search_layouts(plan_of(), 8, most=100)
    assert {plan.layout.lag for plan in in_turn.plans} == {0}
    assert {bool(plan.layout.sampling) for plan in in_turn.plans} == {False, True}
    ahead = search_layouts(plan_of(lag=1, sampling=2), 8, most=100)
    assert all(plan.layout.sampling and plan.layout.lag == 1 for plan in ahead.plans)
    assert ahead.plans[0].layout.gpus == 8


def test_a_pipeline_that_waits_is_given_virtual_stages() -> None:
    work = {"prompts": 64, "responses": 64, "teacher_pass": 0.0}
    found = search_layouts(plan_of("Qwen/Qwen2.5-72B", None, work=work), 64, most=100)
    virtual = next(plan for plan in found.plans if plan.layout.virtual > 1)
    plain = replace(virtual, layout=replace(virtual.layout, virtual=1))
    assert virtual.layout.pipeline > 1 and virtual.time.total < plain.time.total
