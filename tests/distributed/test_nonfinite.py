"""A loss that is not finite on one replica: no rank steps, nothing of the state changes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.test_step_layouts import GROUPS, SIZE, rollouts, settings
from tests.support.harness import run_distributed_test
from tests.support.steps import one_step
from tests.support.tiny_hf import make_tiny_model

LAYOUTS = {
    "data": {"parallel.data": 2},
    "data-distributed-optimizer": {"parallel.data": 2, "optimizer.distributed": True},
    "tensor": {"parallel.tensor": 2},
    "pipeline": {"parallel.pipeline": 2},
}


def updates(rank: int, world_size: int, root: Path) -> dict[str, Any]:
    """A good update, two that must be skipped, a good one; then NaN until the run stops."""
    from scope_megatron.parallel import platform

    platform.initialize()
    from megatron.core import parallel_state

    from scope_megatron.exits import StopRun
    from scope_megatron.learn.learner import Learner
    from scope_megatron.parallel.topology import create_topology

    out = {}
    for layout, changes in LAYOUTS.items():
        config = settings(root / layout, changes | {"faults.nonfinite_updates": 3})
        parallel = config.parallel
        topology = create_topology(parallel.tensor, parallel.pipeline, parallel.sequence)
        learner = Learner(config, topology)
        update(learner, poison=False)
        before = state(learner)
        skipped = update(learner, poison=topology.dp_rank == topology.dp_size - 1)
        after = state(learner)
        same = before.keys() == after.keys() and all(
            torch.equal(before[name], after[name]) for name in before
        )
        overflow = update(learner, poison=True, factor=1e25)
        same = same and all(torch.equal(v, before[name]) for name, v in state(learner).items())
        applied = update(learner, poison=False)
        moved = any(not torch.equal(after[name], value) for name, value in state(learner).items())
        code = None
        try:
            for _ in range(4):
                update(learner, poison=True)
        except StopRun as stop:
            code = stop.code
        masked = update_without_token(learner) if layout == "data" else {}
        row = {"same": same, "moved": moved, "code": code, "skipped": skipped, "applied": applied}
        row |= {"overflow": overflow}
        out[layout] = row | {"masked": masked}
        parallel_state.destroy_model_parallel()
    return out


def update(learner: Any, poison: bool, factor: float = math.nan) -> dict[str, float]:
    """One update; ``poison`` multiplies the gradient of one weight by ``factor`` on this rank."""
    from scope_megatron.learn import observe
    from scope_megatron.parallel import platform

    topology = learner.topology
    groups = [rollouts()[g * SIZE : (g + 1) * SIZE] for g in range(GROUPS)]
    mine = [r for g in groups[topology.dp_rank :: topology.dp_size] for r in g]
    weight = next(p for n, p in learner.student.model.named_parameters() if "linear_fc1" in n)
    hook = weight.register_hook(lambda grad: grad * factor) if poison else None
    try:
        batch, metrics = one_step(learner, mine)
    finally:
        if hook is not None:
            hook.remove()
    observe.observe_batch(metrics, batch, learner.config)
    return metrics.reduce(topology.dp_group, platform.device())


def update_without_token(learner: Any) -> dict[str, float]:
    """An update after one token's embedding became NaN: responses that hold it have no score."""
    embedding = next(p for n, p in learner.student.model.named_parameters() if "word_emb" in n)
    with torch.no_grad():
        embedding[rollouts()[0].token_ids[0]] = torch.nan
    return update(learner, poison=False)


def state(learner: Any) -> dict[str, torch.Tensor]:
    """Everything an update may change: parameters, Adam's states, the schedule."""
    student = learner.student
    out = {f"p.{n}": p.detach().clone() for n, p in student.model.named_parameters()}
    for i, inner in enumerate(
        getattr(student.optimizer, "chained_optimizers", [student.optimizer])
    ):
        for j, adam in enumerate(inner.optimizer.state.values()):
            out |= {f"s.{i}.{j}.{k}": torch.as_tensor(v).clone() for k, v in adam.items()}
    out["schedule"] = torch.tensor(float(student.scheduler.num_steps))
    return out


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    root = tmp_path_factory.mktemp("nonfinite")
    for layout in LAYOUTS:
        make_tiny_model("llama", root / layout / "student")
        make_tiny_model("llama", root / layout / "teacher")
    return root, run_distributed_test(updates, 2, root, timeout=200)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_rank_steps(results: tuple[Path, list[dict[str, Any]]], layout: str) -> None:
    root, ranks = results
    for rank in ranks:
        found = rank[layout]
        assert found["same"] and found["moved"]
        assert found["code"] == 5
        assert found["skipped"]["update/skipped"] == 1.0
        assert "grad_norm" not in found["skipped"]
        assert found["overflow"]["update/skipped"] == 1.0, "the norm's square is infinite"
        assert "update/skipped" not in found["applied"]
        assert found["applied"]["grad_norm"] > 0
    files = sorted(
        (root / layout / "out" / "nonfinite").glob("step_00000001_update_1_rank_*.jsonl")
    )
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert len(rows) == GROUPS * SIZE
    assert not any(row["suspect"] for row in rows), "the student's own scores are finite"
    assert {row["path"] for row in rows} == {"correct", "incorrect", "masked"}


def test_a_response_without_a_score_is_masked(
    results: tuple[Path, list[dict[str, Any]]],
) -> None:
    """Its prompt or response holds the token that broke; the others train on."""
    token = rollouts()[0].token_ids[0]
    hit = [r for r in rollouts() if token in (*r.prompt.token_ids, *r.token_ids[:-1])]
    unjudged = [r for r in rollouts() if r.verdict == "timeout"]
    assert 0 < len(hit) < GROUPS * SIZE
    for rank in results[1]:
        found = rank["data"]["masked"]
        assert found["path/unscored"] == len([r for r in hit if r not in unjudged])
        assert "update/skipped" not in found and found["grad_norm"] > 0
