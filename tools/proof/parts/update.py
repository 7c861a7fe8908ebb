"""One update against transformers in float64: on one GPU, and over NCCL at every layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.distributed.test_step_layouts import reference, rollouts, settings
from tests.support.harness import run_distributed_test
from tests.support.tiny_hf import make_tiny_model
from tools.proof import trainer
from tools.proof.record import Proof

OBJECTIVES: dict[str, dict[str, Any]] = {
    "scope": {},
    "scope, reverse KL, fused head": {"objective.kl": "reverse_kl", "objective.head": "fused"},
    "scope, reverse KL, teacher streamed": {
        "objective.kl": "reverse_kl",
        "teacher.offload": "cpu",
    },
}
SMALL = {"train.microbatch_tokens": 96}
VIRTUAL = SMALL | {"parallel.pipeline": 2, "parallel.virtual_pipeline": 2}
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "tensor 2": (2, {"parallel.tensor": 2}),
    "tensor 2, sequence": (2, {"parallel.tensor": 2, "parallel.sequence": True}),
    "pipeline 2": (2, SMALL | {"parallel.pipeline": 2}),
    "pipeline 2, virtual 2": (2, VIRTUAL),
    "context 2": (2, {"parallel.context": 2}),
    "data 2": (2, {"parallel.data": 2}),
    "data 2, distributed optimizer": (2, {"parallel.data": 2, "optimizer.distributed": True}),
    "data 2, summed beside the backward": (
        2,
        {"parallel.data": 2, "optimizer.distributed": True, "optimizer.overlap": True},
    ),
    "data 2, teacher tensor 2": (2, {"parallel.data": 2, "teacher.parallel": {"tensor": 2}}),
    "tensor 2, teacher pipeline 2": (
        2,
        {"parallel.tensor": 2, "teacher.parallel": {"pipeline": 2}},
    ),
    "tensor 2, pipeline 2": (4, SMALL | {"parallel.tensor": 2, "parallel.pipeline": 2}),
    "pipeline 2, virtual 2, data 2, summed beside the backward": (
        4,
        VIRTUAL | {"parallel.data": 2, "optimizer.distributed": True, "optimizer.overlap": True},
    ),
    "context 2, pipeline 2, virtual 2, teacher tensor 2": (
        4,
        VIRTUAL | {"parallel.context": 2, "teacher.parallel": {"tensor": 2}},
    ),
    "tensor 2, sequence, context 2, pipeline 2, virtual 2": (
        8,
        VIRTUAL | {"parallel.tensor": 2, "parallel.sequence": True, "parallel.context": 2},
    ),
}
# the loss may be off by so much, the gradient's norm by so much
FLOAT32, BFLOAT16 = (1e-4, 1e-3), (3e-2, 6e-2)


def update(proof: Proof) -> None:
    """One rank: float32 to the digit, bfloat16 as near as it gets."""
    make_models(proof.folder)
    precise: dict[str, Any] = {"model.dtype": "float32"}
    objectives = OBJECTIVES | {
        f"{name}, two teachers": more | two_teachers(proof.folder)
        for name, more in OBJECTIVES.items()
    }
    cases = {f"{name}, float32": precise | more for name, more in objectives.items()}
    limits = dict.fromkeys(cases, FLOAT32)
    for name, more in objectives.items():
        cases[f"{name}, bfloat16"] = {"model.dtype": "bfloat16"} | more
        limits[f"{name}, bfloat16"] = BFLOAT16
    _compare(proof, 1, cases, limits)


def layouts(proof: Proof) -> None:
    """Two ranks or more, float32."""
    make_models(proof.folder)
    ranks = 2 if proof.rehearse else torch.cuda.device_count()
    chosen = {name: value for name, value in LAYOUTS.items() if value[0] <= ranks}
    if proof.rehearse:
        names = ("tensor 2, sequence", "pipeline 2, virtual 2", "data 2, teacher tensor 2")
        chosen = {name: chosen[name] for name in names}
    for world in sorted({world for world, _ in chosen.values()}):
        cases = {
            f"{layout}, {objective}": {"model.dtype": "float32"} | parallel | more
            for layout, (size, parallel) in chosen.items()
            for objective, more in OBJECTIVES.items()
            if size == world
        }
        if world == 2:
            cases |= teachers_apart(proof.folder)
        _compare(proof, world, cases, dict.fromkeys(cases, FLOAT32))


def make_models(root: Path) -> None:
    """student; teacher of one; teacher and code of two."""
    make_tiny_model("qwen2-bias", root / "student")
    make_tiny_model("llama", root / "teacher")
    make_tiny_model("qwen3-norms", root / "code", layers=2)


def two_teachers(root: Path, **of_code: Any) -> dict[str, Any]:
    """Settings: every second prompt has the other one."""
    entries = {"math": {"path": str(root / "teacher")}, "code": {"path": str(root / "code")}}
    entries["code"] |= of_code
    return {"model.teacher": None, "model.teachers": entries}


def teachers_apart(root: Path) -> dict[str, dict[str, Any]]:
    """Two teachers beside a pipeline, one of them cut otherwise."""
    teachers = two_teachers(root, parallel={"tensor": 2})
    settings_ = {"model.dtype": "float32", "parallel.pipeline": 2} | SMALL | teachers
    return {
        f"pipeline 2, two teachers, one tensor 2, {objective}": settings_ | more
        for objective, more in OBJECTIVES.items()
    }


def _compare(
    proof: Proof,
    world: int,
    cases: dict[str, dict[str, Any]],
    limits: dict[str, tuple[float, float]],
) -> None:
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    args = (proof.folder, list(cases.values()))
    ours = run_distributed_test(updates, world, *args, timeout=240, backend=backend)[0]
    expected: dict[str, dict[str, Any]] = {}
    for (name, changes), found in zip(cases.items(), ours, strict=True):
        plain = {k: v for k, v in changes.items() if k.startswith(("objective.", "model.teacher"))}
        key = repr(plain)
        if key not in expected:
            expected[key] = reference(proof.folder, settings(proof.folder, plain))
        for what, limit in zip(("loss", "grad_norm"), limits[name], strict=True):
            off = abs(found[what] / expected[key][what] - 1)
            proof.check(f"{name}: {what}, relative error", off, at_most=limit)


def updates(
    rank: int, world_size: int, root: Path, cases: list[dict[str, Any]]
) -> list[dict[str, float]]:
    """Body of a rank: loss and gradient norm of one update in each case."""
    from scope_megatron.parallel import platform

    platform.initialize()
    from megatron.core import parallel_state

    out = []
    for changes in cases:
        learner = trainer.build_learner(settings(root, changes))
        out.append(trainer.one_update(learner, rollouts()))
        parallel_state.destroy_model_parallel()
    return out
