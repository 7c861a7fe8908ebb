"""Every combination of layouts that eight ranks hold: the update is transformers' in float64.

    pytest -m study tests/distributed/test_eight_ranks.py       (a table at its end)

Gradients are summed beside the backward pass and the optimizer is distributed wherever there are
replicas; what of the activations is computed again changes from row to row.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from tests.distributed.test_checkpoint import weights
from tests.distributed.test_step_layouts import (
    OBJECTIVES,
    assert_same_update,
    reference,
    settings,
)
from tests.distributed.test_teacher_offload import learner_of, share
from tests.support.harness import run_distributed_test
from tests.support.steps import one_step
from tests.support.tiny_hf import make_tiny_model

pytestmark = [pytest.mark.study, pytest.mark.timeout(1800)]

RANKS, LAYERS, EXPERTS = 8, 8, 4
CHUNKS = {1: (1,), 2: (1, 2, 4), 4: (1, 2), 8: (1,)}  # by stages: LAYERS divide
OBJECTIVE = "scope-reverse-kl-fused"  # and a pass of the student before it
Layout = dict[str, Any]


def cuts() -> Iterator[Layout]:
    """Tensor x context x pipeline x data = 8, each number of chunks; tensor as heads divide."""
    for tensor, context, pipeline in product((1, 2), (1, 2, 4, 8), (1, 2, 4, 8)):
        if RANKS % (tensor * context * pipeline):
            continue
        data = RANKS // (tensor * context * pipeline)
        for virtual in CHUNKS[pipeline]:
            yield {
                "tensor": tensor,
                "context": context,
                "pipeline": pipeline,
                "virtual_pipeline": virtual,
                "data": data,
            }


def dense() -> list[Layout]:
    found = [cut | {"sequence": s} for cut in cuts() for s in {False, cut["tensor"] > 1}]
    return [layout | recompute(number) for number, layout in enumerate(found)]


def mixtures() -> list[Layout]:
    """Whole experts over two ranks or four of a stage."""
    found = [
        cut | {"sequence": cut["tensor"] > 1, "expert": expert}
        for cut in cuts()
        for expert in (2, 4)
        if RANKS // cut["pipeline"] % expert == 0
    ]
    return [layout | recompute(number) for number, layout in enumerate(found)]


def recompute(number: int) -> Layout:
    return {"recompute": ("none", "selective", "full")[number % 3]}


def text(layout: Layout) -> str:
    sizes = {k: v for k, v in layout.items() if v is not True and v not in (1, False, "none")}
    words = [f"{name.replace('_pipeline', '')} {size}" for name, size in sizes.items()]
    return " x ".join(words + ["sequence"] * bool(layout["sequence"]))


@pytest.mark.parametrize("virtual", [True, False], ids=["virtual", "plain"])
@pytest.mark.parametrize("kind", ["dense", "mixtures"])
def test_every_update_equals_transformers(tmp_path: Path, kind: str, virtual: bool) -> None:
    models = {"dense": ("qwen2-bias", "llama"), "mixtures": ("qwen3-moe", "mixtral")}[kind]
    for name, family in zip(("student", "teacher"), models, strict=True):
        make_tiny_model(family, tmp_path / name, layers=LAYERS)
    layouts = [
        layout
        for layout in (dense() if kind == "dense" else mixtures())
        if (layout["virtual_pipeline"] > 1) is virtual
    ]
    expected = reference(tmp_path, settings(tmp_path, OBJECTIVES[OBJECTIVE]))
    found = run_distributed_test(updates, RANKS, tmp_path, layouts, timeout=1500)[0]
    assert len(found) == len(layouts) == len({text(layout) for layout in layouts})
    prefix = "mixture: " if kind == "mixtures" else ""
    for layout, ours in zip(layouts, found, strict=True):
        assert_same_update(ours, expected, f"{prefix}{text(layout)}")


def updates(rank: int, world_size: int, root: Path, layouts: list[Layout]) -> list[dict[str, Any]]:
    from scope_megatron.parallel import platform

    platform.initialize()
    found = []
    for layout in layouts:
        beside = layout["data"] > 1
        changes = OBJECTIVES[OBJECTIVE] | {
            "train.microbatch_tokens": 64,
            "optimizer.distributed": beside,
            "optimizer.overlap": beside,
        }
        learner = learner_of(root, layout, changes)
        _, metrics = one_step(learner, share(learner))
        values = metrics.reduce(learner.topology.dp_group, platform.device())
        ours: dict[str, Any] = {"loss": values["loss/total"], "grad_norm": values["grad_norm"]}
        ours["weights"] = weights(learner, learner.topology)
        found.append(ours if rank == 0 else {})
        dist.barrier()
    return found
