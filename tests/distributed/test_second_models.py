"""Switches that read both models' whole rows, or a second frozen model, over a cut vocabulary.

One update of two tensor ranks against transformers in float64, by code that shares nothing with it:
loss and norm of the gradient of a distillation of every response.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from scope_megatron.types import Rollout, Verdict
from tests.distributed.test_step_layouts import GROUPS, SIZE, rollouts, settings
from tests.support.divergences import divergence_of_row
from tests.support.harness import run_distributed_test
from tests.support.steps import one_step
from tests.support.tiny_hf import VOCAB, make_tiny_model

OPD = {"algorithm.name": "opd"}
TOPK = OPD | {"objective.kl": "topk", "objective.topk": 5}
CASES: dict[str, dict[str, Any]] = {
    "self-with-the-answer": OPD
    | {"teacher.source": "student", "teacher.privileged": "{answer}", "model.teacher": None},
    "teacher-with-the-answer": OPD
    | {"teacher.privileged": "{answer}", "objective.kl": "reverse_kl"},
    "extrapolated": OPD | {"objective.extrapolation": 1.25},
    "at-the-rollouts-temperature": OPD | {"objective.teacher_temperature": "as_rollout"},
    "exact-at-the-rollouts-temperature": OPD
    | {"objective.teacher_temperature": "as_rollout", "objective.kl": "reverse_kl"},
    "student-topk": TOPK | {"objective.topk_of": "student", "objective.head": "fused"},
    "union-topk-tail": TOPK | {"objective.topk_of": "union", "objective.topk_tail": True},
    "entropy": OPD | {"objective.kl": "entropy_kl", "objective.entropy_threshold": 4.5},
}


def responses() -> list[Rollout]:
    """Of test_step_layouts, each prompt with a privileged one of another length."""
    privileged = [tuple((7 * g + k) % VOCAB for k in range(3 + g)) for g in range(GROUPS)]
    return [
        replace(r, prompt=replace(r.prompt, privileged_ids=privileged[r.prompt.index]))
        for r in rollouts()
    ]


def one_update(rank: int, world_size: int, root: Path) -> dict[str, tuple[float, float]]:
    """(loss, norm of the gradient) by case."""
    from scope_megatron.learn.learner import Learner
    from scope_megatron.parallel import platform
    from scope_megatron.parallel.topology import create_topology

    platform.initialize()
    topology, out = create_topology(world_size, 1, False), {}
    for name, changes in CASES.items():
        learner = Learner(settings(root, changes), topology)
        _, metrics = one_step(learner, responses())
        values = metrics.reduce(topology.dp_group, platform.device())
        out[name] = (values["loss/total"], values["grad_norm"])
    return out


def expected(root: Path, changes: dict[str, Any]) -> tuple[float, float]:
    """The same by transformers, sequence by sequence."""
    from transformers import AutoModelForCausalLM

    student, first, teacher = (
        AutoModelForCausalLM.from_pretrained(
            root / name, dtype=torch.float64, attn_implementation="eager"
        )
        for name in ("student", "student", "teacher")
    )
    loss, count = torch.zeros((), dtype=torch.float64), 0
    for response in responses():
        if response.verdict is Verdict.TIMEOUT:
            continue
        ids = response.token_ids
        plain, told = response.prompt.token_ids, response.prompt.privileged_ids
        z = _rows(student, plain, ids)
        privileged = "teacher.privileged" in changes
        other = first if "teacher.source" in changes else teacher
        with torch.no_grad():
            zt = _rows(other, told if privileged else plain, ids)
            ref = _rows(first, plain, ids) / 0.7
        # self-distillation scores at the teacher's temperature, 1 unless it is the rollout's
        heat = 0.7 if "objective.teacher_temperature" in changes else 1.0
        at = torch.tensor(ids)[:, None]
        own = (z / 0.7).log_softmax(-1).gather(1, at)[:, 0]
        theirs = (zt / heat).log_softmax(-1).gather(1, at)[:, 0]
        scale = changes.get("objective.extrapolation", 1.0)
        reference = ref.log_softmax(-1).gather(1, at)[:, 0]
        target = scale * (theirs - reference) + reference
        kind = changes.get("objective.kl", "sampled")
        if kind == "sampled":
            loss = loss + ((own - own.detach()).exp() * (own.detach() - target)).sum()
        else:
            options = {k.split(".")[1]: v for k, v in changes.items() if k != "objective.kl"}
            options |= {"temperature": 0.7, "teacher_temperature": heat, "kind": kind}
            options = {"topk_tail": False} | options
            loss = loss + sum(divergence_of_row(a, b, options) for a, b in zip(z, zt, strict=True))
        count += len(ids)
    (loss / count).backward()
    norm = math.sqrt(sum(float((p.grad**2).sum()) for p in student.parameters()))
    return float(loss.detach() / count), norm


def _rows(model: Any, prompt: tuple[int, ...], ids: list[int]) -> Tensor:
    tokens = torch.tensor([[*prompt, *ids]])
    logits: Tensor = model(tokens).logits[0, len(prompt) - 1 : len(prompt) + len(ids) - 1]
    return logits


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    root = tmp_path_factory.mktemp("second")
    make_tiny_model("qwen2-bias", root / "student")
    make_tiny_model("llama", root / "teacher")
    assert len(responses()) == GROUPS * SIZE
    return root, run_distributed_test(one_update, 2, root, timeout=180)[0]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("case", CASES)
def test_update_equals_transformers(results: tuple[Path, dict[str, Any]], case: str) -> None:
    root, ours = results
    loss, norm = expected(root, CASES[case])
    assert ours[case][0] == pytest.approx(loss, rel=1e-5)
    assert ours[case][1] == pytest.approx(norm, rel=1e-4)
