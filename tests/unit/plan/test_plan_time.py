"""Seconds by phase: the engine's arithmetic by hand, and what settings must change."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from scope_megatron.instruments.plan.calibrate import calibrate
from scope_megatron.instruments.plan.facts.figures import Efficiencies
from scope_megatron.instruments.plan.seconds.decode import StepCost, decode_share
from scope_megatron.instruments.plan.seconds.timing import placed_apart
from scope_megatron.instruments.plan.workload import ResponseLengths
from tests.unit.plan.cases import plan_of


def test_equal_lengths_take_as_many_steps_as_they_are_long() -> None:
    found = decode_share([10.0] * 6, 5, 2, 1e9, StepCost(fixed=1.0, each=0.0, token=0.0))
    assert (found.seconds, found.steps, found.mean_slots) == (30.0, 30.0, 2.0)


def test_one_long_response_keeps_the_engine() -> None:
    found = decode_share([10.0, 10.0, 10.0, 100.0], 5, 4, 1e9, StepCost(1.0, 0.0, 0.0))
    assert found.seconds == 100.0 and found.tail_seconds == 90.0


def test_cached_tokens_cost_as_they_grow() -> None:
    """A response of n tokens after a prompt of p reads p + n/2 on average in each of n steps."""
    found = decode_share([8.0, 8.0], 4, 2, 1e9, StepCost(0.0, 0.0, 1.0))
    assert found.seconds == pytest.approx(2 * 8 * (4 + 4))
    late = decode_share([8.0, 8.0], 4, 1, 1e9, StepCost(0.0, 0.0, 1.0))  # one after the other
    assert late.seconds == pytest.approx(found.seconds)


def test_a_small_cache_bounds_the_slots() -> None:
    cost = StepCost(1.0, 0.0, 0.0)
    assert decode_share([10.0] * 4, 5, 4, 1e9, cost).seconds == 10
    assert decode_share([10.0] * 4, 5, 4, 11, cost).seconds == 40


@pytest.mark.parametrize("mean", [500, 4000, 10000])
def test_lengths_have_the_mean_that_was_asked_for(mean: float) -> None:
    lengths = ResponseLengths.lognormal(mean, 0.8, 12288, "test")
    assert lengths.mean == pytest.approx(mean, rel=1e-3)
    assert max(lengths.values) <= 12288 and list(lengths.values) == sorted(lengths.values)


def test_training_arithmetic_is_six_per_parameter_and_token() -> None:
    plan = plan_of(teacher=None, data=8, work={"teacher_pass": 0.0})
    reached = plan.gpu.matmul * plan.reached.train * plan.reached.balance
    products = 6 * 1.54e9 * plan.work.tokens / (8 * 989e12 * reached)
    assert plan.time.parts["train/products"] == pytest.approx(products, rel=0.03)
    again = plan_of(teacher=None, data=8, recompute="full", work={"teacher_pass": 0.0})
    ratio = again.time.parts["train/products"] / plan.time.parts["train/products"]
    assert 1.25 < ratio < 1.34


def test_equal_lengths_leave_nobody_waiting() -> None:
    equal = ResponseLengths((4000.0,), "test")
    plan = plan_of(data=8, work={"lengths": equal})
    varied = plan_of(data=8)
    ratio = plan.time.parts["train/products"] / varied.time.parts["train/products"]
    assert ratio == pytest.approx(plan.reached.balance, rel=0.02)


def test_the_last_stage_has_the_vocabulary_besides() -> None:
    """Its products set a pipeline's pace; the first stage's do not count twice."""
    one, two = (plan_of(pipeline=p, data=8 // p).time.parts for p in (1, 2))
    layers, head = 28 * 2 * 1536 * (1536 * 2 + 512 + 3 * 8960), 2 * 152064 * 1536
    assert two["train/products"] / one["train/products"] == pytest.approx(
        2 * (layers / 2 + 0.9 * head) / (layers + 0.9 * head), rel=0.1
    )


def test_an_engine_waits_for_the_longest_of_all_responses() -> None:
    lengths = ResponseLengths.lognormal(400, 0.8, 12288, "test", 4096)
    assert lengths.most > 1.5 * lengths.values[-1]
    steps = plan_of(data=8, work={"lengths": lengths}).time.decoding
    assert steps is not None and steps.steps >= lengths.most


def test_small_gpus_spend_more_on_the_host() -> None:
    """A decoding step has a floor that no bandwidth lowers."""
    plan = plan_of(data=8)
    decoding = plan.time.decoding
    assert decoding is not None
    floor = decoding.steps * (plan.reached.host_s + 28 * plan.reached.overhead_s)
    assert decoding.seconds > floor


def test_twice_the_gpus_halve_the_passes_not_the_long_tail() -> None:
    few, many = plan_of(data=8).time.phases, plan_of(data=16).time.phases
    assert many["train"] == pytest.approx(few["train"] / 2, rel=0.05)
    assert many["score"] == pytest.approx(few["score"] / 2, rel=0.05)
    assert few["rollout"] / 2 < many["rollout"] < few["rollout"]


def test_an_offloaded_teacher_costs_copies_that_do_not_hide() -> None:
    """Every microbatch brings the whole teacher; arithmetic over large ones hides it."""
    large = plan_of(data=8, teacher_offload=True).time
    small = plan_of(data=8, teacher_offload=True, microbatch=2048).time
    assert large.parts["score/teacher offload"] == 0
    assert small.parts["score/teacher offload"] > 0
    sent = {t.name: t.sent for t in large.transfers}["teacher offload"]
    assert sent > 2 * 7.6e9


def test_a_pipeline_waits_and_virtual_stages_wait_less() -> None:
    idle = {
        v: plan_of(pipeline=4, virtual=v, data=2).time.parts["train/pipeline bubble"]
        for v in (1, 7)
    }
    # chunked, microbatches come in multiples of the stages: at most three more of hundreds
    assert idle[7] == pytest.approx(idle[1] / 7, rel=0.01)


def test_apart_is_no_better_than_perfect() -> None:
    plan = plan_of(data=8)
    apart = placed_apart(plan.time, 8)
    assert apart is not None and apart.lag == 1
    assert plan.time.total <= apart.seconds * (1 + 1e-9)  # both sides as fast as their share
    assert placed_apart(plan.time, 1) is None


def write_metrics(run: Path, phases: dict[str, float], steps: int = 8) -> None:
    """metrics.jsonl as a run leaves it; the first steps are warm-up and slower."""
    lines = []
    for step in range(1, steps + 1):
        slow = 3.0 if step <= 2 else 1.0
        row = {f"time/{name}": slow * value for name, value in phases.items()}
        lines.append(json.dumps({"step": step, **row}))
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n{cut off")


def test_calibration_finds_the_efficiencies_that_a_run_had(tmp_path: Path) -> None:
    truth = Efficiencies(
        train=0.31,
        score=0.44,
        decode=0.35,
        overhead_s=50e-6,
        hop_s=24e-6,
        host_s=8e-3,
        sync_s=2.5,
        step_s=7.0,
    )  # the rollout's four are off by one factor
    plan = plan_of(data=8)
    phases = dict(replace(plan, reached=truth).time.phases)
    seconds = {name: value for name, value in phases.items() if name != "other"}
    write_metrics(tmp_path, seconds | {"step": sum(phases.values())})
    fitted = calibrate(plan, tmp_path)
    for phase, value in phases.items():
        assert fitted.after[phase] == pytest.approx(value, rel=1e-3), phase
    assert fitted.reached.train == pytest.approx(truth.train, rel=1e-3)
    assert fitted.reached.decode == pytest.approx(truth.decode, rel=1e-3)
    other = plan_of(data=16, tensor=1)  # what was fitted serves another layout
    expected = replace(other, reached=truth).time.total
    assert replace(other, reached=fitted.reached).time.total == pytest.approx(expected, rel=0.02)
    assert not math.isclose(other.time.total, expected, rel_tol=0.05)


def test_engines_on_gpus_of_their_own() -> None:
    """Trainers hold no engine, engines no trainer; one step ahead the longer of the two counts."""
    layout = {"tensor": 2, "data": 4, "sequence": True, "distributed": True}
    together = plan_of(**layout)
    apart = plan_of(**layout, sampling=8, engine_share=0.85)
    *training, sampling = apart.ranks
    tenants = {name for rank in training for held in rank.phases.values() for name in held}
    assert not tenants & {"engine parameters", "kv cache", "engine graphs"}
    assert {"engine parameters", "kv cache"} <= sampling.phases["rollout"].keys()
    assert not sampling.phases["train"].keys() & {"student", "optimizer", "teacher", "activations"}
    assert sampling.cache_tokens > together.ranks[0].cache_tokens
    assert apart.layout.gpus == 16 and apart.layout.engines == 8
    phases = apart.time.phases
    assert phases["train"] == together.time.phases["train"], "as many ranks train"
    assert apart.time.total == pytest.approx(sum(phases.values()))
    ahead = plan_of(**layout, sampling=8, engine_share=0.85, lag=1).time
    rest = sum(phases.values()) - phases["rollout"]
    assert ahead.total == pytest.approx(max(phases["rollout"], rest))
    assert ahead.total < apart.time.total
