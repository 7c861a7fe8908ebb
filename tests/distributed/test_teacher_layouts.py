"""A teacher cut otherwise than the student on the same ranks: the update is the reference's.

Two pairs of layouts here; every teacher's layout beside every student's, mixtures included:
    pytest -m study tests/distributed/test_teacher_layouts.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from scope_megatron.learn.frozen.travel import deal_by_length
from scope_megatron.parallel.second import RankPlace, blocks_of
from tests.distributed.test_checkpoint import weights
from tests.distributed.test_step_layouts import assert_same_update, reference, settings
from tests.distributed.test_teacher_offload import held_bytes, learner_of, share
from tests.support.harness import run_distributed_test
from tests.support.steps import one_step
from tests.support.tiny_hf import make_tiny_model

Layout = dict[str, Any]
FUSED = {"objective.kl": "reverse_kl", "objective.head": "fused"}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "sampled": {},
    "exact": FUSED,
    "exact-offloaded": FUSED | {"teacher.offload": "cpu"},
    "exact-logits": FUSED | {"objective.head": "logits"},
}
ONE: Layout = {"tensor": 1, "pipeline": 1}
TENSOR: Layout = {"tensor": 2, "pipeline": 1}
PIPELINE: Layout = {"tensor": 1, "pipeline": 2}
BOTH: Layout = {"tensor": 2, "pipeline": 2}
SEQUENCE: Layout = {"tensor": 2, "sequence": True}
STUDENTS: list[Layout] = [
    {"data": 4},
    {"tensor": 2, "data": 2},
    {"pipeline": 2, "data": 2},
    {"tensor": 4},
    {"pipeline": 4},
    {"tensor": 2, "pipeline": 2, "sequence": True},
    {"context": 2, "data": 2},
]
# student, teacher, world, (student's layout, teacher's) ..., objectives
Pairs = list[tuple[Layout, Layout]]
RUNS: dict[str, tuple[str, str, int, Pairs, list[str]]] = {
    "pair": (
        "qwen2-bias",
        "llama",
        2,
        [({"data": 2}, TENSOR), (SEQUENCE, PIPELINE)],
        ["sampled", "exact", "exact-offloaded"],
    ),
    "all": (
        "qwen2-bias",
        "llama",
        4,
        [
            (student, teacher)
            for student in STUDENTS
            for teacher in (ONE, TENSOR, PIPELINE, BOTH)
            if student not in ({"tensor": 4}, {"pipeline": 4}) or teacher != BOTH
        ],
        ["sampled", "exact"],
    ),
    "ways": (
        "llama-tied",
        "gemma3",
        4,
        [
            (BOTH, {"context": 2, "tensor": 2}),
            (BOTH, SEQUENCE | {"pipeline": 2}),
            ({"data": 4}, BOTH),
        ],
        list(OBJECTIVES),
    ),
    "mixture": (
        "qwen3-moe",
        "mixtral",
        4,
        [
            ({"data": 4, "expert": 2}, SEQUENCE | {"expert": 4}),
            (SEQUENCE | {"data": 2}, {"pipeline": 2, "expert": 2}),
        ],
        ["sampled", "exact"],
    ),
}


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "run",
    ["pair", *(pytest.param(name, marks=pytest.mark.study) for name in RUNS if name != "pair")],
)
def test_update_equals_transformers(tmp_path: Path, run: str) -> None:
    student, teacher, world, pairs, objectives = RUNS[run]
    make_tiny_model(student, tmp_path / "student")
    make_tiny_model(teacher, tmp_path / "teacher")
    expected = {
        name: reference(tmp_path, settings(tmp_path, OBJECTIVES[name])) for name in objectives
    }
    found = run_distributed_test(updates, world, tmp_path, pairs, objectives, timeout=800)[0]
    assert len(found) == len(pairs) * len(objectives)
    for (student_layout, teacher_layout, objective), ours in found.items():
        name = f"{student_layout}; teacher {teacher_layout}, {objective}"
        assert_same_update(ours, expected[objective], name)


def updates(
    rank: int, world_size: int, root: Path, pairs: Pairs, objectives: list[str]
) -> dict[Any, Any]:
    from scope_megatron.parallel import platform

    platform.initialize()
    found = {}
    for student, teacher in pairs:
        for objective in objectives:
            changes = OBJECTIVES[objective] | {"teacher.parallel": teacher}
            learner = learner_of(root, student, changes)
            (frozen,) = learner.frozen
            given = learner.config.parallel
            same = all(
                size == getattr(given, name) for name, size in learner.config.teacher.parallel
            )
            assert (frozen.travel is None) is same
            assert frozen.topology.tp_size == teacher.get("tensor", 1)
            _, metrics = one_step(learner, share(learner))
            values = metrics.reduce(learner.topology.dp_group, platform.device())
            found[_text(student), _text(teacher), objective] = {
                "loss": values["loss/total"],
                "grad_norm": values["grad_norm"],
                "weights": weights(learner, learner.topology),
            }
            if objective == "exact-offloaded":
                learner.rest_frozen(updates_to_come=False)
                assert held_bytes(frozen.tensors()) == 0
    return found


def _text(layout: Layout) -> str:
    return " x ".join(f"{name} {size}" for name, size in layout.items())


@pytest.mark.timeout(300)
def test_teachers_in_layouts_of_their_own_and_the_students(tmp_path: Path) -> None:
    """One is cut as the student, one otherwise; grpo's reference otherwise."""
    make_tiny_model("qwen2-bias", tmp_path / "student")
    make_tiny_model("llama", tmp_path / "math")
    make_tiny_model("qwen3-norms", tmp_path / "code", layers=2)
    entries: dict[str, Any] = {tag: {"path": str(tmp_path / tag)} for tag in ("math", "code")}
    several = {"model.teacher": None, "model.teachers": entries}
    expected = reference(tmp_path, settings(tmp_path, several | FUSED))
    entries["code"] = entries["code"] | {"parallel": TENSOR}
    (ours, same), _ = run_distributed_test(several_and_grpo, 2, tmp_path, several)
    assert_same_update(ours, expected, "pipeline 2; two teachers, one tensor 2")
    assert same


def several_and_grpo(
    rank: int, world_size: int, root: Path, several: dict[str, Any]
) -> tuple[dict[str, Any], bool]:
    from scope_megatron.parallel import platform

    platform.initialize()
    learner = learner_of(root, {"pipeline": 2}, several | FUSED)
    assert [frozen.travel is None for frozen in learner.frozen] == [True, False]
    _, metrics = one_step(learner, share(learner))
    values = metrics.reduce(learner.topology.dp_group, platform.device())
    ours = {"loss": values["loss/total"], "grad_norm": values["grad_norm"]}
    ours["weights"] = weights(learner, learner.topology)
    scores = []
    for parallel in (None, TENSOR):
        changes = {"algorithm.name": "grpo", "teacher.parallel": parallel}
        learner = learner_of(root, {"data": 2}, changes)
        batch, _ = one_step(learner, share(learner))
        scores.append(batch.reference_logprobs)
    assert scores[0].keys() == scores[1].keys() and scores[0]
    same = all(torch.allclose(scores[0][i], scores[1][i], atol=1e-5) for i in scores[0])
    return ours, same


class _Sizes:
    def __init__(self, world: int, tensor: int = 1, pipeline: int = 1, context: int = 1) -> None:
        self.world_size, self.tp_size, self.cp_size = world, tensor, context
        self.pp_size, self.dp_size = pipeline, world // (tensor * pipeline * context)


def blocks(first: Any, second: Any) -> list[tuple[int, ...]]:
    return blocks_of(first, second)


def test_blocks_are_whole_replicas_of_both() -> None:
    assert blocks(_Sizes(4), _Sizes(4)) == [(0,), (1,), (2,), (3,)]
    assert blocks(_Sizes(4, tensor=2), _Sizes(4)) == [(0, 1), (2, 3)]
    assert blocks(_Sizes(4, pipeline=2), _Sizes(4, tensor=2)) == [(0, 1, 2, 3)]
    assert blocks(_Sizes(8, pipeline=2), _Sizes(8, pipeline=4)) == [(0, 2, 4, 6), (1, 3, 5, 7)]
    for first in (_Sizes(16, 2, 2), _Sizes(16, 1, 4, 2), _Sizes(16, 4)):
        for second in (_Sizes(16, 2), _Sizes(16, 1, 2), _Sizes(16, 2, 4)):
            found = blocks(first, second)
            assert sorted(rank for ranks in found for rank in ranks) == list(range(16))
            for side in (first, second):
                held = [{RankPlace.of(rank, side).data for rank in ranks} for ranks in found]  # type: ignore[arg-type]
                assert sum(map(len, held)) == side.dp_size, "no replica is torn"


def test_responses_are_dealt_by_length() -> None:
    assert deal_by_length({3: 10, 1: 7, 2: 6, 5: 4}, [0, 4]) == {1: 4, 2: 4, 3: 0, 5: 0}
    assert deal_by_length({}, [0]) == {}
