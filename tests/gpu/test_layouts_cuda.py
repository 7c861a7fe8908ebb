"""Layouts over NCCL, one GPU for each rank: the update is transformers' in float64.

The layouts are those of the proof program: tensor, pipeline, virtual, context and data parallelism,
teachers in layouts of their own, two teachers. A world larger than this machine's GPUs is skipped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.test_step_layouts import reference, settings
from tests.support.harness import need_gpus, run_distributed_test
from tools.proof.parts import update

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("world", sorted({world for world, _ in update.LAYOUTS.values()}))
def test_updates_equal_transformers(tmp_path: Path, world: int) -> None:
    need_gpus(world)
    update.make_models(tmp_path)
    cases = {
        (layout, objective): {"model.dtype": "float32"} | parallel | more
        for layout, (size, parallel) in update.LAYOUTS.items()
        for objective, more in update.OBJECTIVES.items()
        if size == world
    }
    expected = {
        objective: reference(tmp_path, settings(tmp_path, _plain(more)))
        for objective, more in update.OBJECTIVES.items()
    }
    given = list(cases.values())
    found = run_distributed_test(
        update.updates, world, tmp_path, given, timeout=500, backend="nccl"
    )[0]
    for (layout, objective), ours in zip(cases, found, strict=True):
        for name, limit in zip(("loss", "grad_norm"), update.FLOAT32, strict=True):
            off = abs(ours[name] / expected[objective][name] - 1)
            assert off < limit, (layout, objective, name, off)


def _plain(changes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in changes.items() if name.startswith("objective.")}


@pytest.mark.timeout(300)
def test_streamed_teachers_are_on_the_device_one_at_a_time(tmp_path: Path) -> None:
    """Two of them give what two give that stay, bit for bit, and leave nothing behind."""
    update.make_models(tmp_path)
    (result,) = run_distributed_test(streamed_or_not, 1, tmp_path, timeout=240, backend="nccl")
    stay, leave = result["none"], result["cpu"]
    for name, tensor in stay["weights"].items():
        assert torch.equal(leave["weights"][name], tensor), name
    assert min(stay["held"]) > 0 and max(leave["held"]) < max(stay["held"])
    assert leave["at rest"] == [0, 0] and stay["at rest"] == stay["held"]


def streamed_or_not(rank: int, world_size: int, root: Path) -> dict[str, dict[str, Any]]:
    from scope_megatron.parallel import platform

    platform.initialize()
    from tests.distributed.test_checkpoint import weights
    from tests.distributed.test_teacher_offload import held_bytes, learner_of, share
    from tests.support.steps import one_step

    results = {}
    for offload in ("none", "cpu"):
        changes = {"model.dtype": "bfloat16", "teacher.offload": offload}
        changes |= {"objective.kl": "reverse_kl"} | update.two_teachers(root)
        learner = learner_of(root, {}, changes)
        for _ in range(2):
            one_step(learner, share(learner))
            held = [held_bytes(frozen.tensors()) for frozen in learner.frozen]
            learner.rest_frozen(updates_to_come=False)
        torch.cuda.synchronize()
        results[offload] = {
            "weights": {n: t.cpu() for n, t in weights(learner, learner.topology).items()},
            "held": held,
            "at rest": [held_bytes(frozen.tensors()) for frozen in learner.frozen],
        }
        del learner
        torch.cuda.empty_cache()
    return results
