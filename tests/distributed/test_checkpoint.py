"""Save at one layout, load at another; damaged checkpoints are stepped over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.harness import run_distributed_test
from tests.distributed.test_step_layouts import GROUPS, SIZE, rollouts, settings
from tests.tiny_hf import make_tiny_model

Layouts = dict[str, dict[str, Any]]  # the first one saves, all of them load
LOADS: Layouts = {"same": {"tensor": 2}, "pipeline": {"pipeline": 2}, "data": {}}
EXPERT_LOADS: Layouts = {
    "same": {"data": 2, "expert": 2},
    "pipeline": {"pipeline": 2},
    "data": {"data": 2},
    "expert-tensor": {"tensor": 2, "sequence": True, "expert": 2},
}


@pytest.mark.parametrize("distributed", [False, True], ids=["optimizer", "distributed-optimizer"])
@pytest.mark.parametrize(
    ("family", "loads"), [("llama-tied", LOADS), ("qwen3-moe", EXPERT_LOADS)], ids=["", "experts"]
)
def test_a_checkpoint_goes_on_at_any_layout(
    tmp_path: Path, family: str, loads: Layouts, distributed: bool
) -> None:
    make_tiny_model(family, tmp_path / "student")
    make_tiny_model("llama", tmp_path / "teacher")
    results = run_distributed_test(save_and_load, 2, tmp_path, loads, distributed, timeout=240)[0]
    saved, continued = results["saved"], results["continued"]
    for layout in loads:
        loaded, further = results[layout]
        for name, tensor in saved.items():
            assert torch.equal(loaded[name], tensor), (layout, name)
            torch.testing.assert_close(further[name], continued[name], rtol=1e-4, atol=1e-5)
    assert any(not torch.equal(saved[name], continued[name]) for name in saved)
    assert results["skipped"] == ["step_00000002"], "the newest was damaged: the one before is used"


def save_and_load(
    rank: int, world_size: int, root: Path, loads: Layouts, distributed: bool
) -> dict[str, Any]:
    from scope_megatron.parallel import platform

    platform.initialize()
    from megatron.core import parallel_state

    from scope_megatron.train import checkpoint

    output, results = root / "out", {}
    learner, topology = learner_at(root, loads["same"], distributed)
    state = state_of(learner, topology)
    update(learner, topology)
    progress = checkpoint.layout_progress(topology)
    directory = checkpoint.save_checkpoint(state, output, 1, progress, keep=2)
    results["saved"] = weights(learner, topology)
    update(learner, topology)
    results["continued"] = weights(learner, topology)
    checkpoint.save_checkpoint(state, output, 2, progress, keep=2)
    if rank == 0:
        damage(output / "checkpoints" / "step_00000002")
    found, lines = checkpoint.find_valid(output)
    assert found == directory
    results["skipped"] = [Path(line.split(" is damaged")[0]).name for line in lines]
    for layout, parallel in loads.items():
        parallel_state.destroy_model_parallel()
        learner, topology = learner_at(root, parallel, distributed)
        assert checkpoint.load_checkpoint(state_of(learner, topology), directory)["step"] == 1
        loaded = weights(learner, topology)
        update(learner, topology)
        results[layout] = (loaded, weights(learner, topology))
    return results


def learner_at(root: Path, parallel: dict[str, Any], distributed: bool) -> Any:
    from scope_megatron.parallel.topology import create_topology
    from scope_megatron.train.learner import Learner

    changes = {
        "optimizer.distributed": distributed,
        "optimizer.lr": 1e-2,
        "optimizer.eps": 1e-3,
    }
    changes |= {f"parallel.{name}": value for name, value in parallel.items()}
    sizes = {name: value for name, value in parallel.items() if name != "data"}
    topology = create_topology(**sizes)
    return Learner(settings(root, changes), topology), topology


def state_of(learner: Any, topology: Any) -> Any:
    from scope_megatron.train.checkpoint import TrainingState

    student = learner.student
    return TrainingState(student.model, student.optimizer, student.scheduler, topology)


def update(learner: Any, topology: Any) -> None:
    from scope_megatron.train import observe
    from scope_megatron.train.batch import make_batch

    groups = [rollouts()[g * SIZE : (g + 1) * SIZE] for g in range(GROUPS)]
    mine = [r for g in groups[topology.dp_rank :: topology.dp_size] for r in g]
    batch = make_batch(mine, "incorrect")
    learner.score(batch)
    learner.update(batch, observe.step_metrics())


def weights(learner: Any, topology: Any) -> dict[str, torch.Tensor]:
    from scope_megatron.convert.gather import iter_full_tensors

    student = learner.student
    full = iter_full_tensors(student.model, student.hf, topology, 1 << 20)
    return {name: tensor.clone() for name, tensor in full}


def damage(directory: Path) -> None:
    shard = max(directory.glob("*.distcp"), key=lambda path: path.stat().st_size)
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
