"""The count of updates goes from torch's Adam to Transformer Engine's and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig
from megatron.core.optimizer.optimizer import FP32Optimizer

from scope_megatron.parallel import platform
from scope_megatron.parallel.optimizer import after_loading, translate

GROUP = {"lr_mult": 1.0, "is_expert_parallel": False, "is_decoupled_lr": False}


class GroupStepAdam(torch.optim.Optimizer):
    """Holds its count as Transformer Engine's and Apex's FusedAdam do: in the groups."""

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        defaults = {"lr": 0.1, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.01}
        super().__init__(groups, defaults | {"bias_correction": True})

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            assert group["bias_correction"] and len(group["betas"]) == 2
            group["step"] = group["step"] + 1 if "step" in group else 1
            for p in group["params"]:
                self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                self.state[p].setdefault("exp_avg_sq", torch.zeros_like(p))


@pytest.fixture(autouse=True, scope="module")
def _megatron_on_this_machine() -> None:
    platform.initialize()


def make(adam: type[torch.optim.Optimizer]) -> MegatronOptimizer:
    groups = [
        {"params": [torch.nn.Parameter(torch.ones(3))], "wd_mult": decay, **GROUP}
        for decay in (0.0, 1.0)
    ]
    config = OptimizerConfig(optimizer="adam", lr=0.1)
    return FP32Optimizer(adam(groups), config, lambda optimizer, config=None: None)


def trained(adam: type[torch.optim.Optimizer], updates: int) -> MegatronOptimizer:
    optimizer = make(adam)
    for _ in range(updates):
        for group in optimizer.optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.ones_like(p)
        optimizer.optimizer.step()
    return optimizer


def as_loaded(optimizer: MegatronOptimizer) -> dict[str, Any]:
    """What a checkpoint gives back: megatron-core saves one step for all parameters."""
    saved = optimizer.state_dict()
    steps = {float(state.pop("step")) for state in saved["state"].values() if "step" in state}
    if steps:
        saved["state"]["common_step"] = torch.tensor(steps.pop())
    return saved


def steps_of(optimizer: MegatronOptimizer) -> set[float]:
    inner = optimizer.optimizer
    if isinstance(inner, GroupStepAdam):
        assert not any("step" in state for state in inner.state.values())
        return {float(group["step"]) for group in inner.param_groups}
    assert not any("step" in group for group in inner.param_groups)
    return {float(state["step"]) for state in inner.state.values()}


@pytest.mark.parametrize("reader", [torch.optim.AdamW, GroupStepAdam])
@pytest.mark.parametrize("writer", [torch.optim.AdamW, GroupStepAdam])
def test_the_step_is_there_whoever_wrote_it(
    writer: type[torch.optim.Optimizer], reader: type[torch.optim.Optimizer]
) -> None:
    loaded = as_loaded(trained(writer, 3))
    optimizer = make(reader)
    translate(optimizer, loaded)
    optimizer.load_state_dict(loaded)
    after_loading(optimizer)
    assert steps_of(optimizer) == {3.0}
    for group in optimizer.optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)
    optimizer.optimizer.step()
    assert steps_of(optimizer) == {4.0}


def test_chains_of_optimizers_are_found() -> None:
    first, second = (as_loaded(trained(GroupStepAdam, 2)) for _ in range(2))
    loaded: dict[Any, Any] = {0: first, 1: {"optimizer": second}}
    translate(make(torch.optim.AdamW), loaded)
    for part in (first, second):
        assert float(part["state"]["common_step"]) == 2.0


def test_a_cpu_keeps_torchs_own_choice_of_kernel() -> None:
    """Fused kernels round otherwise: a checkpoint of a GPU must not bring them along."""
    saved = trained(torch.optim.AdamW, 1)
    for group in saved.optimizer.param_groups:
        group["fused"] = True
    optimizer, loaded = make(torch.optim.AdamW), as_loaded(saved)
    translate(optimizer, loaded)
    optimizer.load_state_dict(loaded)
    after_loading(optimizer)
    assert {group["fused"] for group in optimizer.optimizer.param_groups} == {None}
