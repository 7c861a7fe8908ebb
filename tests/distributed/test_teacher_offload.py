"""A teacher that comes a layer at a time: no bit is changed, and its memory is not held."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.test_checkpoint import weights
from tests.distributed.test_step_layouts import GROUPS, SIZE, rollouts, settings
from tests.support.harness import run_distributed_test
from tests.support.steps import one_step
from tests.support.tiny_hf import make_tiny_model

KINDS: dict[str, dict[str, Any]] = {
    "sampled": {},
    "exact-fused": {"objective.kl": "forward_kl", "objective.head": "fused"},
    "reference": {"algorithm.name": "grpo"},
}


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("teacher", "world", "layout"),
    [
        ("llama-tied", 2, {"pipeline": 2}),
        ("mixtral", 2, {"tensor": 2, "sequence": True}),
    ],
)
def test_a_streamed_teacher_gives_the_same_update(
    tmp_path: Path, teacher: str, world: int, layout: dict[str, Any]
) -> None:
    make_tiny_model("llama-tied", tmp_path / "student")
    make_tiny_model(teacher, tmp_path / "teacher")
    for results in run_distributed_test(update_both_ways, world, tmp_path, layout):
        for kind, (stays, streamed) in results.items():
            for name, tensor in stays["weights"].items():
                assert torch.equal(streamed["weights"][name], tensor), (kind, name)
            assert stays["held"] == stays["held at rest"] > 0
            assert streamed["held at rest"] == 0 < streamed["held"] < stays["held"]


def update_both_ways(
    rank: int, world_size: int, root: Path, layout: dict[str, Any]
) -> dict[str, list[dict[str, Any]]]:
    from scope_megatron.parallel import platform

    platform.initialize()
    results: dict[str, list[dict[str, Any]]] = {}
    for kind, changes in KINDS.items():
        for offload in ("none", "cpu"):
            learner = learner_of(root, layout, changes | {"teacher.offload": offload})
            for _ in range(2):
                one_step(learner, share(learner))
                held = held_bytes(learner.frozen[0].tensors())
                learner.rest_frozen(updates_to_come=False)
            results.setdefault(kind, []).append(
                {
                    "weights": weights(learner, learner.topology),
                    "held": held,
                    "held at rest": held_bytes(learner.frozen[0].tensors()),
                }
            )
    return results


def learner_of(root: Path, layout: dict[str, Any], changes: dict[str, Any]) -> Any:
    from megatron.core import parallel_state

    from scope_megatron.learn.learner import Learner
    from scope_megatron.parallel.topology import create_topology

    parallel_state.destroy_model_parallel()
    config = settings(root, {f"parallel.{k}": v for k, v in layout.items()} | changes)
    parallel = config.parallel
    topology = create_topology(
        parallel.tensor,
        parallel.pipeline,
        parallel.sequence,
        expert=parallel.expert,
        context=parallel.context,
    )
    return Learner(config, topology)


def share(learner: Any) -> list[Any]:
    given, topology = rollouts(), learner.topology
    groups = [given[g * SIZE : (g + 1) * SIZE] for g in range(GROUPS)]
    return [r for g in groups[topology.dp_rank :: topology.dp_size] for r in g]


def held_bytes(tensors: list[torch.Tensor]) -> int:
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


@pytest.mark.timeout(240)
def test_a_teacher_ten_times_the_student_is_never_held(tmp_path: Path) -> None:
    """Tensors that are made from the start of the learner on, at most at once."""
    make_tiny_model("llama-tied", tmp_path / "student", layers=2)
    make_tiny_model("llama", tmp_path / "teacher", layers=40)
    (found,) = run_distributed_test(peaks, 1, tmp_path)
    teacher, student = found["teacher"], found["student"]
    print({name: f"{size / 2**20:.2f} MiB" for name, size in found.items()})
    assert teacher > 10 * student
    assert found["none"] - found["cpu"] > 0.9 * teacher
    assert found["state"] == 3 * student, "optimizer: the student's parameters and two moments"


def peaks(rank: int, world_size: int, root: Path) -> dict[str, int]:
    from scope_megatron.parallel import platform

    platform.initialize()
    from scope_megatron.parallel.memory import TensorPeak
    from scope_megatron.parallel.optimizer import state_tensors

    found: dict[str, int] = {}
    for offload in ("cpu", "none"):
        changes = {"teacher.offload": offload, "objective.kl": "reverse_kl"}
        with TensorPeak() as watched:
            learner = learner_of(root, {}, changes)
            one_step(learner, share(learner))
        found[offload] = watched.peak
        assert not any(p.requires_grad for p in learner.frozen[0].model.parameters())
        states = [t for t in state_tensors(learner.student.optimizer) if t.dim()]
        found["state"] = held_bytes(states)
    found["teacher"] = held_bytes(learner.frozen[0].tensors())
    found["student"] = sum(p.nbytes for p in learner.student.model.parameters())
    return found


@pytest.mark.timeout(120)
def test_a_teacher_in_half_precision_beside_a_student_in_single(tmp_path: Path) -> None:
    make_tiny_model("llama-tied", tmp_path / "student")
    make_tiny_model("llama", tmp_path / "teacher")
    (losses,) = run_distributed_test(losses_by_dtype, 1, tmp_path)
    for kind, (single, half) in losses.items():
        assert half != single, kind
        assert half == pytest.approx(single, rel=0.03), kind


def losses_by_dtype(rank: int, world_size: int, root: Path) -> dict[str, list[float]]:
    from scope_megatron.parallel import platform

    platform.initialize()
    losses: dict[str, list[float]] = {}
    for kind in ("sampled", "exact-fused"):
        for dtype in ("float32", "bfloat16"):
            learner = learner_of(root, {}, KINDS[kind] | {"teacher.dtype": dtype})
            assert {p.dtype for p in learner.student.model.parameters()} == {torch.float32}
            (frozen,) = learner.frozen
            assert {p.dtype for p in frozen.model.parameters()} == {getattr(torch, dtype)}
            _, metrics = one_step(learner, share(learner))
            losses.setdefault(kind, []).append(metrics.reduce()["loss/total"])
    return losses
