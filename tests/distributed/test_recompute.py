"""Activations computed again, and an optimizer that leaves between updates, change no bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.test_checkpoint import learner_at, update, weights
from tests.support.harness import run_distributed_test
from tests.support.tiny_hf import make_tiny_model

WAYS: dict[str, dict[str, Any]] = {
    "none": {},
    "selective": {"recompute": "selective"},
    "full": {"recompute": "full"},
    "first layer": {"recompute": "full", "recompute_layers": 1},
}


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("family", "world", "layout"),
    [
        ("llama-tied", 1, {}),
        ("gemma2", 1, {}),
        ("qwen3-moe", 1, {}),
        ("llama-tied", 2, {"tensor": 2, "sequence": True}),
        ("llama-tied", 2, {"pipeline": 2}),
    ],
)
def test_recomputed_activations_give_the_same_update(
    tmp_path: Path, family: str, world: int, layout: dict[str, Any]
) -> None:
    make_tiny_model(family, tmp_path / "student")
    make_tiny_model("llama", tmp_path / "teacher")
    for results in run_distributed_test(update_by_every_way, world, tmp_path, layout):
        expected, base = results["none"]
        for way, (got, calls) in results.items():
            for name, tensor in expected.items():
                assert torch.equal(got[name], tensor), (way, name)
            assert (calls > base) is (way != "none"), f"{way}: attention ran {calls} times"
        if "pipeline" not in layout:  # else a stage has one layer
            assert results["first layer"][1] < results["full"][1] == results["selective"][1]


def update_by_every_way(
    rank: int, world_size: int, root: Path, layout: dict[str, Any]
) -> dict[str, tuple[dict[str, torch.Tensor], int]]:
    from scope_megatron.parallel import platform

    platform.initialize()
    from megatron.core import parallel_state

    from scope_megatron.model.attention import PackedCausalAttention

    calls = [0]
    original = PackedCausalAttention.forward

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        return original(self, *args, **kwargs)

    PackedCausalAttention.forward = counted  # type: ignore[method-assign]
    results = {}
    for way, settings in WAYS.items():
        parallel_state.destroy_model_parallel()
        learner, topology = learner_at(root, layout | settings, False)
        calls[0] = 0
        update(learner, topology)
        update(learner, topology)
        results[way] = (weights(learner, topology), calls[0])
    return results


@pytest.mark.timeout(240)
@pytest.mark.parametrize("distributed", [False, True], ids=["optimizer", "distributed-optimizer"])
def test_an_optimizer_that_leaves_between_updates_gives_the_same(
    tmp_path: Path, distributed: bool
) -> None:
    make_tiny_model("llama-tied", tmp_path / "student")
    make_tiny_model("llama", tmp_path / "teacher")
    (result,) = run_distributed_test(update_with_and_without, 1, tmp_path, distributed)
    stays, leaves = result["stays"], result["leaves"]
    assert stays["held"] > 0 and leaves["held"] == 0, "the gradients' memory is free"
    for name, tensor in stays["weights"].items():
        assert torch.equal(leaves["weights"][name], tensor), name


def update_with_and_without(
    rank: int, world_size: int, root: Path, distributed: bool
) -> dict[str, dict[str, Any]]:
    from scope_megatron.parallel import platform

    platform.initialize()
    from megatron.core import parallel_state

    from scope_megatron.parallel.offload import OptimizerPlace

    results: dict[str, dict[str, Any]] = {}
    for name, offload in (("stays", False), ("leaves", True)):
        parallel_state.destroy_model_parallel()
        learner, topology = learner_at(root, {}, distributed)
        student = learner.student
        place = OptimizerPlace(student.ddp, student.optimizer, offload)
        place.leave()
        for _ in range(3):
            with place.resident():
                update(learner, topology)
        held = sum(b.grad_data.untyped_storage().nbytes() for b in student.ddp.buffers)
        results[name] = {"weights": weights(learner, topology), "held": held}
    return results
