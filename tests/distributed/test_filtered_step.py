"""An update with filtered groups is the update of a batch without them, over two replicas, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scope_megatron.types import Verdict
from tests.distributed.test_step_layouts import rollouts, settings
from tests.support.harness import run_distributed_test
from tests.support.steps import one_step
from tests.support.tiny_hf import make_tiny_model

FILTER = {"algorithm.name": "opd", "algorithm.group_filter": "mixed"}


def updates(rank: int, world_size: int, root: Path) -> dict[str, tuple[float, float]]:
    """(loss, norm of the gradient) by normalization, of all groups and of the mixed ones alone."""
    from scope_megatron.learn.learner import Learner
    from scope_megatron.parallel import platform
    from scope_megatron.parallel.topology import create_topology

    platform.initialize()
    topology, out = create_topology(1, 1, False), {}
    mine = [r for r in rollouts() if r.prompt.index % world_size == topology.dp_rank]
    right: dict[int, set[bool]] = {}
    for r in mine:
        if r.verdict is not Verdict.TIMEOUT:
            correct = r.finished and r.verdict is Verdict.CORRECT
            right.setdefault(r.prompt.index, set()).add(correct)
    mixed = [r for r in mine if len(right[r.prompt.index]) == 2]
    assert 0 < len(mixed) < len(mine)
    for normalization in ("token_mean", "prompt_sum", "microbatch_mean"):
        changes = FILTER | {"objective.normalization": normalization, "parallel.data": world_size}
        changes["train.microbatch_tokens"] = 4096  # one microbatch on a replica
        for name, held in (("all", mine), ("mixed", mixed)):
            _, metrics = one_step(Learner(settings(root, changes), topology), held)
            values = metrics.reduce(topology.dp_group, platform.device())
            out[f"{normalization} {name}"] = (values["loss/total"], values["grad_norm"])
    return out


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("filtered")
    make_tiny_model("qwen2-bias", root / "student")
    make_tiny_model("llama", root / "teacher")
    return root


@pytest.mark.timeout(300)
@pytest.mark.parametrize("replicas", [1, 2])
def test_filtered_groups_leave_no_trace(root: Path, replicas: int) -> None:
    told: dict[str, Any] = run_distributed_test(updates, replicas, root, timeout=180)[0]
    for normalization in ("token_mean", "prompt_sum"):
        every, alone = (told[f"{normalization} {name}"] for name in ("all", "mixed"))
        assert every == pytest.approx(alone, rel=1e-5)
    if replicas == 1:  # one microbatch: its token mean is the batch's
        assert told["microbatch_mean all"] == pytest.approx(told["token_mean all"], rel=1e-5)
        assert told["microbatch_mean mixed"] == pytest.approx(told["token_mean all"], rel=1e-5)
