"""Memory by tenant: sizes that are known by hand, and what settings must change.

Against measured memory: tests/distributed/test_plan_memory.py.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from scope_megatron.config import load_config
from scope_megatron.instruments.plan.activations import stage_kept
from scope_megatron.instruments.plan.estimate import models_of
from scope_megatron.instruments.plan.facts.shapes import total_parameters
from scope_megatron.instruments.plan.memory import in_flight
from scope_megatron.instruments.plan.remedies import remedies
from tests.unit.plan.cases import plan_of

GIB = 2**30


def test_bytes_per_parameter_are_those_of_mixed_precision() -> None:
    """2 for the parameter, 4 for its gradient, 4 for its float32 copy, 8 for Adam's moments."""
    rank = plan_of().ranks[0].phases["train"]
    count = rank["student"] / 2
    assert count == pytest.approx(total_parameters(plan_of().models.student), rel=2e-3)
    assert rank["gradients"] == 4 * count
    assert (rank["masters"], rank["optimizer"]) == (4 * count, 8 * count)
    shared = plan_of(data=4, distributed=True).ranks[0].phases["train"]
    assert shared["gradients"] == 4 * count
    assert (shared["masters"], shared["optimizer"]) == (count, 2 * count)


def test_an_offloaded_tenant_is_absent_where_it_is_away() -> None:
    plan = plan_of(optimizer_offload=True, teacher_offload=True)
    phases = plan.ranks[0].phases
    for tenant in ("gradients", "masters", "optimizer"):
        assert tenant in phases["train"]
        assert tenant not in phases["rollout"] and tenant not in phases["score"]
    assert "teacher" in phases["score"]
    assert "teacher" not in phases["rollout"] and "teacher" not in phases["train"]


def test_an_offloaded_teacher_is_there_a_layer_at_a_time() -> None:
    whole = plan_of().ranks[0].phases["score"]["teacher"]
    shape = plan_of().models.teacher
    assert shape is not None
    streamed = plan_of(teacher_offload=True).ranks[0].phases["score"]["teacher"]
    embedding = 2 * 152064 * shape.hidden  # the largest of what passes, and the output weight
    assert streamed == pytest.approx(3 * embedding, rel=0.01) and streamed < whole / 2
    exact = plan_of(teacher_offload=True, exact=True).ranks[0].phases["train"]["teacher"]
    assert exact == pytest.approx(embedding, rel=0.01)


def test_an_engine_that_sleeps_is_there_in_rollout_alone() -> None:
    asleep, awake = plan_of().ranks[0], plan_of(engine_sleeps=False).ranks[0]
    assert "kv cache" in asleep.phases["rollout"] and "kv cache" not in asleep.phases["train"]
    assert awake.phases["train"]["kv cache"] == asleep.phases["rollout"]["kv cache"] > 0


def test_engine_takes_its_share_of_the_memory() -> None:
    plan = plan_of(engine_share=0.5)
    held = plan.ranks[0].phases["rollout"]
    given = held["engine parameters"] + held["kv cache"] + held["engine graphs"]
    assert given == pytest.approx(0.5 * plan.gpu.memory, rel=0.02)


def test_recomputation_keeps_less() -> None:
    kept = {
        mode: plan_of(recompute=mode).ranks[0].phases["train"]["activations"]
        for mode in ("none", "selective", "full")
    }
    assert kept["none"] > kept["selective"] > kept["full"] > 0
    some = plan_of(recompute="full", recompute_layers=14).ranks[0].phases["train"]["activations"]
    assert kept["full"] < some < kept["none"]


def test_recomputed_layers_are_those_of_each_chunk() -> None:
    some = {"pipeline": 2, "recompute": "full"}
    shape, build = plan_of().models.student, plan_of().models.build
    chunks = plan_of(**some, virtual=2, recompute_layers=3).layout
    whole = plan_of(**some, recompute_layers=6).layout
    assert stage_kept(shape, chunks, build, 14) == stage_kept(shape, whole, build, 14)
    assert stage_kept(shape, chunks, build, 14) < stage_kept(
        shape, replace(chunks, recompute_layers=2), build, 14
    )


@pytest.mark.parametrize("name", ["tensor", "context"])
def test_activations_of_a_cut_sequence(name: str) -> None:
    whole = plan_of(sequence=False).ranks[0].phases["train"]["activations"]
    cut = plan_of(**{name: 2}, sequence=name == "tensor").ranks[0].phases["train"]["activations"]
    assert cut == pytest.approx(whole / 2, rel=0.05)


def test_microbatches_in_flight_as_the_schedules_have_them() -> None:
    """1F1B: the first of four stages holds four; interleaved: its warm-up and one more."""
    layout = plan_of(pipeline=4).layout
    assert [in_flight(layout, stage, 8) for stage in range(4)] == [4, 3, 2, 1]
    assert in_flight(layout, 0, 2) == 2
    interleaved = plan_of(pipeline=4, virtual=2).layout
    assert [in_flight(interleaved, s, 8) for s in range(4)] == [5.5, 4.5, 3.5, 2.5]


def test_an_exact_divergence_keeps_the_teachers_states() -> None:
    plan = plan_of(exact=True)
    states = plan.ranks[0].phases["train"]["teacher states"]
    rows = 4096 * plan.work.lengths.mean
    assert states == pytest.approx(2 * rows * 3584 * 2, rel=1e-3)
    assert "teacher states" not in plan_of().ranks[0].phases["train"]


def test_what_does_not_fit_is_mended_cheapest_first() -> None:
    plan = plan_of("Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-32B", tensor=4, data=2, sequence=True)
    assert not plan.fits and plan.over > 0
    ways = remedies(plan)
    assert ways and all(way.plan.fits for way in ways)
    seconds = [way.plan.time.total for way in ways]
    assert seconds == sorted(seconds)


def test_nothing_mends_what_is_far_too_large() -> None:
    assert remedies(plan_of("Qwen/Qwen2.5-72B", None)) == []


def test_the_initial_student_beside_a_teacher_is_counted() -> None:
    """objective.extrapolation loads a third model."""
    config = load_config("configs/quickstart.yaml", check_files=False)
    beyond = load_config(
        "configs/quickstart.yaml", ["objective.extrapolation=1.25"], check_files=False
    )
    (plain, _), (more, _) = models_of(config), models_of(beyond)
    assert more.teachers == (*plain.teachers, plain.student)
