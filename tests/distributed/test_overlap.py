"""Gradients summed beside the backward pass are those summed after it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.test_checkpoint import weights
from tests.distributed.test_teacher_offload import learner_of, share
from tests.support.harness import run_distributed_test
from tests.support.steps import one_step
from tests.support.tiny_hf import make_tiny_model

SMALL = {"train.microbatch_tokens": 64, "optimizer.distributed": True}


@pytest.mark.timeout(300)
def test_weights_are_the_same(tmp_path: Path) -> None:
    make_tiny_model("qwen2-bias", tmp_path / "student")
    make_tiny_model("llama", tmp_path / "teacher")
    for after, beside, began in run_distributed_test(updates, 2, tmp_path):
        assert began == (False, True), "the reductions are under way before the backward's end"
        for name, tensor in after.items():
            assert torch.equal(beside[name], tensor), name


def updates(
    rank: int, world_size: int, root: Path
) -> tuple[dict[str, Any], dict[str, Any], tuple[bool, bool]]:
    from megatron.core.distributed import param_and_grad_buffer

    from scope_megatron.parallel import platform

    platform.initialize()
    group = param_and_grad_buffer._ParamAndGradBucketGroup
    plain = group.finish_grad_sync
    found, began, calls = [], [], list[bool]()

    def finish(self: Any, *args: Any, **more: Any) -> None:
        calls.append(self.grad_reduce_handle is not None)
        plain(self, *args, **more)

    group.finish_grad_sync = finish
    for overlap in (False, True):
        learner = learner_of(root, {"data": 2}, SMALL | {"optimizer.overlap": overlap})
        one_step(learner, share(learner))  # counts each bucket's gradients, and waits
        calls.clear()
        one_step(learner, share(learner))
        found.append(weights(learner, learner.topology))
        began.append(all(calls) and bool(calls))
    return found[0], found[1], (began[0], began[1])
