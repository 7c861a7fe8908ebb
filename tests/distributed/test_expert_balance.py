"""The load-balancing loss of a mixture: gradients and metric against transformers in float64."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from scope_megatron.types import Rollout, Verdict
from tests.distributed.test_step_layouts import GROUPS, SIZE, rollouts
from tests.distributed.test_teacher_offload import learner_of
from tests.support.harness import run_distributed_test
from tests.support.steps import one_step
from tests.support.tiny_hf import make_tiny_model

COEFFICIENT = 2.0
# one microbatch of all responses: what is balanced is the same at every layout
SETTINGS = {"objective.moe_aux_loss_coeff": COEFFICIENT, "train.microbatch_tokens": 4096}
SETTINGS |= {"algorithm.name": "kd"}
LAYOUTS: list[dict[str, Any]] = [
    {"pipeline": 2},
    {"tensor": 2, "sequence": True, "expert": 2},
    {"tensor": 2, "sequence": True, "recompute": "selective"},
]


def responses() -> list[Rollout]:
    """All correct, of an even number of tokens: nothing is padded."""
    given = rollouts()
    for rollout in given:
        rollout.verdict, rollout.finished = Verdict.CORRECT, True
    if sum(rollout.length for rollout in given) % 2:
        given[0].token_ids.append(1)
        given[0].engine_logprobs.append(0.0)
    return given


@pytest.mark.timeout(300)
def test_gradients_equal_transformers(tmp_path: Path) -> None:
    make_tiny_model("qwen3-moe", tmp_path / "student")
    norm, even = reference(tmp_path)
    assert even > 1.01, "random routers are not even"
    found = run_distributed_test(updates, 2, tmp_path)[0]
    assert len(found) == len(LAYOUTS)
    for layout, (ours, balance, without) in found.items():
        assert ours == pytest.approx(norm, rel=1e-4), layout
        assert balance == pytest.approx(even, rel=1e-5), layout
        assert abs(without / norm - 1) > 0.01, "the loss would not be seen"


def reference(root: Path) -> tuple[float, float]:
    """(norm of the gradient, E sum f P as a mean over layers)."""
    from transformers import AutoModelForCausalLM

    eager = {"attn_implementation": "eager", "experts_implementation": "eager"}
    model = AutoModelForCausalLM.from_pretrained(root / "student", dtype=torch.float64, **eager)
    given = responses()
    tokens_total = sum(len(r.token_ids) for r in given)
    loss = torch.zeros((), dtype=torch.float64)
    routed: list[list[torch.Tensor]] = []
    for response in given:
        prompt, ids = list(response.prompt.token_ids), response.token_ids
        out = model(torch.tensor([prompt + ids]), output_router_logits=True)
        rows = slice(len(prompt) - 1, len(prompt) + len(ids) - 1)
        logp = (out.logits[0, rows] / 0.7).log_softmax(-1)
        loss = loss - logp.gather(1, torch.tensor(ids)[:, None]).sum() / tokens_total
        routed.append(list(out.router_logits))
    values = []
    for layer in zip(*routed, strict=True):
        probs = torch.cat(list(layer)).softmax(-1)
        experts = probs.shape[1]
        chosen = torch.zeros_like(probs).scatter(1, probs.topk(2, -1).indices, 1.0)
        values.append(experts * (chosen.mean(0) / 2 * probs.mean(0)).sum())
    balance = torch.stack(values)
    (loss + COEFFICIENT * balance.sum()).backward()
    norm = math.sqrt(sum(float((p.grad**2).sum()) for p in model.parameters()))
    return norm, float(balance.mean().detach())


def updates(rank: int, world_size: int, root: Path) -> dict[str, tuple[float, float, float]]:
    from scope_megatron.parallel import platform

    platform.initialize()
    found = {}
    for layout in LAYOUTS:
        values = []
        for coefficient in (COEFFICIENT, 0.0):
            changes = SETTINGS | {"objective.moe_aux_loss_coeff": coefficient}
            learner = learner_of(root, layout, changes)
            mine, topology = responses(), learner.topology
            groups = [mine[g * SIZE : (g + 1) * SIZE] for g in range(GROUPS)]
            share = [r for g in groups[topology.dp_rank :: topology.dp_size] for r in g]
            _, metrics = one_step(learner, share)
            values.append(metrics.reduce(topology.dp_group, platform.device()))
        assert "balance/experts" not in values[1]
        first, second = values
        found[str(layout)] = first["grad_norm"], first["balance/experts"], second["grad_norm"]
    return found
