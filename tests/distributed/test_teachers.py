"""Several teachers, a tag per row: each response is corrected by its own.

Every algorithm and switch beside two teachers:  pytest -m study tests/distributed/test_teachers.py
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.test_checkpoint import weights
from tests.distributed.test_step_layouts import assert_same_update, reference, settings
from tests.distributed.test_teacher_offload import learner_of, share
from tests.support.harness import run_distributed_test
from tests.support.steps import one_step
from tests.support.tiny_hf import make_tiny_model

EXACT = {"objective.kl": "reverse_kl", "objective.head": "fused"}
LAYOUTS: list[dict[str, Any]] = [{"pipeline": 2}, {"data": 2}, {"tensor": 2, "sequence": True}]
CASES: dict[str, dict[str, Any]] = {
    "sampled": {},
    "exact": EXACT,
    "exact-logits": EXACT | {"objective.head": "logits"},
    "exact-offloaded": EXACT | {"teacher.offload": "cpu"},
}


def taught(root: Path, **paths: str) -> dict[str, Any]:
    teachers = {tag: {"path": str(root / name)} for tag, name in paths.items()}
    return {"model.teacher": None, "model.teachers": teachers}


@pytest.mark.timeout(240)
def test_update_equals_transformers(tmp_path: Path) -> None:
    make_tiny_model("qwen2-bias", tmp_path / "student")
    make_tiny_model("llama", tmp_path / "math")
    make_tiny_model("qwen3-norms", tmp_path / "code", layers=2)
    several = taught(tmp_path, math="math", code="code")
    expected = {
        case: reference(tmp_path, settings(tmp_path, several | changes))
        for case, changes in CASES.items()
    }
    for found in run_distributed_test(updates, 2, tmp_path, several)[:1]:
        for (layout, case), ours in found.items():
            assert_same_update(ours, expected[case], f"{layout}; two teachers, {case}")
            metrics = ours["metrics"]
            counts = [metrics[f"teacher/{tag}/responses"] for tag in ("math", "code")]
            assert sum(counts) == metrics["path/incorrect"] and min(counts) > 0, (layout, case)
            for tag in ("math", "code"):
                assert metrics[f"teacher/{tag}/perplexity"] > 1
                assert metrics[f"teacher/{tag}/kl"] != 0


def updates(rank: int, world_size: int, root: Path, several: dict[str, Any]) -> dict[Any, Any]:
    from scope_megatron.learn import observe
    from scope_megatron.parallel import platform

    platform.initialize()
    found = {}
    for layout in LAYOUTS:
        for case, changes in CASES.items():
            if "data" in layout and case == "exact-logits":
                continue
            learner = learner_of(root, layout, several | changes)
            assert [frozen.tags for frozen in learner.frozen] == [("math",), ("code",)]
            batch, metrics = one_step(learner, share(learner))
            observe.observe_batch(metrics, batch, learner.config)
            values = metrics.reduce(learner.topology.dp_group, platform.device())
            found[str(layout), case] = {
                "loss": values["loss/total"],
                "grad_norm": values["grad_norm"],
                "weights": weights(learner, learner.topology),
                "metrics": observe.finish(values),
            }
    return found


@pytest.mark.timeout(120)
def test_a_checkpoint_with_two_tags_is_one_model(tmp_path: Path) -> None:
    """And two teachers that are the same one give what one gives."""
    make_tiny_model("qwen2-bias", tmp_path / "student")
    make_tiny_model("llama", tmp_path / "teacher")
    (tmp_path / "link").symlink_to(tmp_path / "teacher")
    ((alone, both),) = run_distributed_test(alone_and_both, 1, tmp_path)
    assert alone.keys() == both.keys()
    for name, tensor in alone.items():
        assert torch.equal(both[name], tensor), name


def alone_and_both(rank: int, world_size: int, root: Path) -> list[dict[str, torch.Tensor]]:
    from scope_megatron.parallel import platform

    platform.initialize()
    found = []
    for changes in ({}, taught(root, math="teacher", code="link")):
        learner = learner_of(root, {}, EXACT | changes)
        assert len(learner.frozen) == 1
        one_step(learner, share(learner))
        found.append(weights(learner, learner.topology))
    return found


TOPK = {"objective.kl": "topk", "objective.topk": 5, "objective.topk_of": "union"}
OPD = {"algorithm.name": "opd"}
ALGORITHMS: dict[str, dict[str, Any]] = {
    "kdrl": {"algorithm.name": "kdrl"},
    "rlsd": {"algorithm.name": "rlsd"},
    "sdar": {"algorithm.name": "sdar"},
    "srpo": {"algorithm.name": "srpo"},
    "iw-opd": OPD | {"objective.iw_gamma": 0.5},
    "exopd": OPD | {"objective.extrapolation": 1.25},
    "scope-iw": {"objective.iw_gamma": 0.5},
    "kdrl-exact": {"algorithm.name": "kdrl"} | EXACT,
    "srpo-exact": {"algorithm.name": "srpo", "objective.kl": "forward_kl"},
    "iw-opd-exact": OPD | EXACT | {"objective.iw_gamma": 0.5},
    "kdrl-extrapolated": {"algorithm.name": "kdrl", "objective.extrapolation": 1.25},
    "prefixes": OPD | {"objective.prefix_tokens": 5},
    "entropy": OPD | {"objective.kl": "entropy_kl", "objective.entropy_threshold": 4.5},
    "union-topk": OPD | TOPK,
    "opsd": OPD | {"teacher.privileged": "{answer}"},
    "rlsd-privileged": {"algorithm.name": "rlsd", "teacher.privileged": "{answer}"},
    "filtered": {"algorithm.name": "srpo", "algorithm.group_filter": "mixed"},
    "pass-rates": OPD | {"algorithm.pass_rate_alpha": 1.0, "algorithm.pass_rate_beta": 1.0},
}


@pytest.mark.study
@pytest.mark.timeout(400)
def test_every_algorithm_takes_each_responses_own_teacher(tmp_path: Path) -> None:
    """A gradient is a sum over responses: with two teachers it is what the responses of the one
    have where that teacher is alone, and what those of the other have where the other is."""
    make_tiny_model("qwen2-bias", tmp_path / "student")
    make_tiny_model("llama", tmp_path / "math")
    make_tiny_model("qwen3-norms", tmp_path / "code", layers=2)
    (found,) = run_distributed_test(gradients, 1, tmp_path, timeout=300)
    assert found.keys() == ALGORITHMS.keys()
    for case, (both, math, code, wrong) in found.items():
        off = (both - math - code).norm() / both.norm()
        assert off < 1e-5, (case, float(off))
        assert (both - wrong).norm() / both.norm() > 1e-3, f"{case}: either teacher would do"


def gradients(rank: int, world_size: int, root: Path) -> dict[str, list[torch.Tensor]]:
    """With both teachers, of each one's responses by it alone, and of all by the first."""
    from scope_megatron.parallel import platform

    platform.initialize()
    several = taught(root, math="math", code="code")
    alone = {tag: {"model.teacher": str(root / tag)} for tag in ("math", "code")}
    ways = [
        (several, None),
        (alone["math"], "math"),
        (alone["code"], "code"),
        (alone["math"], None),
    ]
    return {
        case: [gradient(root, changes | teachers, tag) for teachers, tag in ways]
        for case, changes in ALGORITHMS.items()
    }


def gradient(root: Path, changes: dict[str, Any], tag: str | None) -> torch.Tensor:
    """Of an update by the responses with this tag, whose weights are those among all."""
    from scope_megatron.learn import observe
    from tests.distributed.test_second_models import responses
    from tests.support.steps import batch_of

    learner = learner_of(root, {}, changes)
    batch = batch_of(responses(), learner.topology)
    learner.score(batch)
    weighed = learner.weigh(batch)
    kept = [tag in (None, batch.rollouts[i].prompt.tag) for i in range(len(batch))]
    scales = {name: torch.tensor(kept).float() for name, _ in weighed.streams}
    weighed = replace(weighed, streams=weighed.streams.scaled(scales))
    learner.update(batch, weighed, observe.step_metrics(learner.config.teacher_tags))
    return torch.cat([buffer.grad_data.clone() for buffer in learner.student.ddp.buffers])
