"""Groups that the teacher scores while others are sampled: their order changes no bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.test_checkpoint import weights
from tests.distributed.test_step_layouts import GROUPS, SIZE, rollouts
from tests.distributed.test_teacher_offload import learner_of
from tests.support.harness import run_distributed_test
from tests.support.steps import batch_of
from tests.support.tiny_hf import make_tiny_model

KINDS: dict[str, dict[str, Any]] = {"sampled": {}, "exact": {"objective.kl": "reverse_kl"}}
# Numbers of groups that arrive together; None: the whole batch is scored when it is complete.
ARRIVALS: dict[str, list[list[int]] | None] = {
    "at the end": None,
    "in order": [[group] for group in range(GROUPS)],
    "backwards": [[group] for group in reversed(range(GROUPS))],
    "two at once": [[1, 0], [2], list(range(3, GROUPS))],
}


@pytest.mark.timeout(180)
def test_order_of_arrival_changes_no_bit(tmp_path: Path) -> None:
    make_tiny_model("llama-tied", tmp_path / "student")
    make_tiny_model("llama-tied", tmp_path / "teacher", seed=1)
    (found,) = run_distributed_test(updates, 1, tmp_path)
    for kind in KINDS:
        first, *others = (found[kind, name] for name in ARRIVALS if ARRIVALS[name] is not None)
        assert first["scored ahead"] > 0
        for other in others:
            assert all(torch.equal(first["weights"][n], t) for n, t in other["weights"].items())
            assert all(torch.equal(first["teacher"][i], t) for i, t in other["teacher"].items())
        whole = found[kind, "at the end"]
        assert whole["teacher"].keys() == first["teacher"].keys()
        for index, expected in whole["teacher"].items():
            torch.testing.assert_close(first["teacher"][index], expected, rtol=1e-5, atol=1e-6)


def updates(rank: int, world_size: int, root: Path) -> dict[tuple[str, str], dict[str, Any]]:
    from scope_megatron.parallel import platform

    platform.initialize()
    from scope_megatron.learn import observe

    found = {}
    for kind, changes in KINDS.items():
        for name, arrivals in ARRIVALS.items():
            learner, given = learner_of(root, {}, changes), rollouts()
            for numbers in arrivals or []:
                learner.score_ahead([given[n * SIZE : (n + 1) * SIZE] for n in numbers])
            ahead = sum(rollout.taught is not None for rollout in given)
            batch = batch_of(given, learner.topology)
            learner.score(batch)
            learner.update(batch, learner.weigh(batch), observe.step_metrics())
            assert not any(rollout.taught for rollout in given), "nothing is kept"
            found[kind, name] = {
                "scored ahead": ahead,
                "teacher": batch.teacher_logprobs,
                "weights": weights(learner, learner.topology),
            }
    return found
