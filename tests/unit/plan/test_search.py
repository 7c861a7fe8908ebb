"""Search: what it returns runs and fits; large machines in seconds."""

from __future__ import annotations

import time

import pytest

from scope_megatron.plan.layout import layout_problems
from scope_megatron.plan.search import Offers, search_layouts
from tests.unit.plan.cases import plan_of

ALL = Offers(context=True, virtual=True, teacher_offload=True)
LARGE = {"prompts": 4096, "responses": 32768}


@pytest.mark.parametrize(
    ("student", "teacher", "gpu", "gpus", "offers"),
    [
        ("Qwen/Qwen2.5-1.5B", "Qwen/Qwen2.5-7B", "h100", 8, Offers()),
        ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-70B", "h100", 64, Offers()),
        ("Qwen/Qwen3-30B-A3B", "Qwen/Qwen3-235B-A22B", "h100", 256, Offers()),
        ("Qwen/Qwen3-235B-A22B", "example/moe-1T", "gb200", 2048, ALL),
    ],
)
def test_the_best_layouts_run_and_fit(
    student: str, teacher: str, gpu: str, gpus: int, offers: Offers
) -> None:
    base = plan_of(student, teacher, gpu, work=LARGE)
    found = search_layouts(base, gpus, offers)
    assert found.plans
    for plan in found.plans:
        assert plan.layout.ranks == gpus and plan.fits
        assert list(layout_problems(plan.layout, plan.models.student, plan.models.teachers)) == []
        assert plan.work.prompts % plan.layout.data == 0
    seconds = [plan.time.total for plan in found.plans]
    assert seconds == sorted(seconds)


@pytest.mark.slow
def test_a_trillion_parameters_on_16384_gpus_in_seconds() -> None:
    base = plan_of("example/moe-1T", "example/moe-1T", "gb200", work=LARGE)
    begun = time.process_time()  # others may share the cores
    found = search_layouts(base, 16384, ALL)
    assert time.process_time() - begun < 30
    assert found.cuts > 100 and (found.plans or found.nearest is not None)


def test_what_lacks_least_is_named_where_nothing_fits() -> None:
    found = search_layouts(plan_of("Qwen/Qwen2.5-72B", "Qwen/Qwen2.5-72B"), 2)
    assert found.plans == [] and found.nearest is not None and found.nearest.over > 0
