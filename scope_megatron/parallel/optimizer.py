"""Gradient buffers, optimizer and learning-rate schedule of the student."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.optimizer import MegatronOptimizer, get_megatron_optimizer
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from scope_megatron.config import OptimizerConfig
from scope_megatron.parallel.agree import barrier
from scope_megatron.parallel.chunks import ReplicatedModel, model_chunks
from scope_megatron.trace.spans import span


class Waiting:
    """Seconds that this rank waited for the others' backward passes, before gradients are summed.

    A barrier separates the waiting from the reduction; the reduction would wait as long.
    """

    def __init__(self) -> None:
        self._seconds = 0.0

    def measure(self) -> None:
        """Wait for the data-parallel ranks (collective)."""
        group = parallel_state.get_data_parallel_group(with_context_parallel=True)
        if group.size() == 1:
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        begun = time.perf_counter()
        with span("wait for replicas"):
            barrier(group)
        self._seconds += time.perf_counter() - begun

    def pop(self) -> float:
        """The seconds since the last call."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds


def wrap_student(
    model: torch.nn.Module, settings: OptimizerConfig, waiting: Waiting | None = None
) -> ReplicatedModel:
    """Give the student gradient buffers; gradients are summed over the data-parallel ranks.

    Experts get buffers and an optimizer of their own, with and without expert parallelism (their
    ranks differ with it), so that a checkpoint's states load at any ``parallel.expert``.
    """
    for name, parameter in model.named_parameters():
        if ".experts." in name:
            parameter.allreduce = False
    buffers = DistributedDataParallelConfig(
        grad_reduce_in_fp32=settings.states == "float32",
        # parameters are gathered at once: the engine gets them right after the update
        overlap_grad_reduce=settings.overlap,
        use_distributed_optimizer=settings.distributed,
        average_in_collective=False,
    )
    wrapped = [
        DistributedDataParallel(config=chunk.config, ddp_config=buffers, module=chunk)
        for chunk in model_chunks(model)
    ]
    for chunk in wrapped:
        chunk.config.finalize_model_grads_func = partial(_finalize_without_division, waiting)
        chunk.config.no_sync_func = (
            chunk.no_sync if len(wrapped) == 1 else [each.no_sync for each in wrapped]
        )
    return ReplicatedModel(wrapped)


def _finalize_without_division(
    waiting: Waiting | None,
    model: list[torch.nn.Module],
    num_tokens: torch.Tensor | None = None,
    **kwargs: object,
) -> None:
    """megatron-core's reductions; the losses are normalised already, so no division by tokens."""
    if waiting is not None:
        waiting.measure()
    finalize_model_grads(model, None, **kwargs)


def build_optimizer(
    model: ReplicatedModel, settings: OptimizerConfig, dtype: torch.dtype
) -> MegatronOptimizer:
    """Adam with decoupled weight decay (fused by TE or Apex when they import)."""
    optimizer = get_megatron_optimizer(
        MegatronOptimizerConfig(
            optimizer="adam",
            lr=settings.lr,
            min_lr=0.0,
            weight_decay=settings.weight_decay,
            adam_beta1=settings.beta1,
            adam_beta2=settings.beta2,
            adam_eps=settings.eps,
            clip_grad=settings.clip_grad,
            bf16=dtype == torch.bfloat16 and settings.states == "float32",
            params_dtype=dtype,
            use_distributed_optimizer=settings.distributed,
        ),
        model.chunks,
    )
    _choose_kernels(optimizer)
    return optimizer


def _choose_kernels(optimizer: MegatronOptimizer) -> None:
    """One kernel for torch's Adam on CUDA, where its default makes up to 8 bytes of temporaries per
    parameter. A checkpoint's groups bring what the machine that wrote it had."""
    for _, adam in _torch_adams(optimizer):
        for group in adam.param_groups:
            fused = bool(group["params"]) and all(p.is_cuda for p in group["params"])
            group["fused"], group["foreach"] = (True, False) if fused else (None, None)
            for state in (adam.state[p] for p in group["params"] if p in adam.state):
                # where the kernel looks for it: beside the parameter; else on the host
                device = state["exp_avg"].device if fused else torch.device("cpu")
                state["step"] = state["step"].to(device)


def build_scheduler(
    optimizer: MegatronOptimizer, settings: OptimizerConfig, steps: int
) -> OptimizerParamScheduler:
    """Linear warm-up over ``warmup_steps`` updates, then constant, linear or cosine to zero."""
    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=settings.lr,
        min_lr=0.0,
        lr_warmup_steps=settings.warmup_steps,
        lr_decay_steps=max(steps, settings.warmup_steps + 1),
        lr_decay_style=settings.schedule,
        start_wd=settings.weight_decay,
        end_wd=settings.weight_decay,
        wd_incr_steps=steps,
        wd_incr_style="constant",
    )


def learning_rate(optimizer: MegatronOptimizer) -> float:
    """The rate of the next update."""
    return float(optimizer.param_groups[0]["lr"])


def gradients_are_finite(model: ReplicatedModel) -> bool:
    """Whether the sum of squares of the gradients in this rank's buffers is finite.

    NaN or infinity anywhere makes it not so, and so do gradients whose norm overflows float32:
    clipping by an infinite norm would turn them into zeros. One pass over the buffers, no copy.
    """
    buffers = [*model.buffers, *model.expert_parallel_buffers]
    norms = [torch.linalg.vector_norm(b.grad_data, dtype=torch.float32) for b in buffers]
    return bool(torch.stack(norms).square().sum().isfinite()) if norms else True


def before_loading(optimizer: MegatronOptimizer) -> None:
    """Make a fresh optimizer ready for the states of a checkpoint.

    megatron-core's distributed optimizer expects TE's or Apex's Adam here. With torch's it cannot
    describe itself before the first update (no states yet), and asks the checkpoint for a ``step``
    tensor that it does not store (the step is in the parameter groups).
    """
    for inner, adam in _torch_adams(optimizer):
        if isinstance(inner, DistributedOptimizer):
            inner._set_main_param_and_optimizer_states = partial(_set_states_but_step, inner)
        if adam.state:
            continue
        for group in adam.param_groups:
            for parameter in group["params"]:
                adam.state[parameter] = {
                    "step": torch.tensor(0.0),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }


def translate(optimizer: MegatronOptimizer, loaded: dict[str, Any]) -> None:
    """Make this optimizer's own what a checkpoint holds of another kind of Adam.

    torch's has the count of updates in the parameters' states (``common_step`` in a checkpoint),
    TE's and Apex's in the parameter groups; each has settings in its groups that the others lack.
    ``loaded``, what a checkpoint holds of the optimizer, is changed. The distributed optimizer's
    parts, which have no states, carry the count in their groups in any case.
    """
    inner = next((part.optimizer for part in _chain(optimizer) if part.optimizer), None)
    has_torch_adam = isinstance(inner, torch.optim.AdamW)
    for part in _parts(loaded):
        states, groups = part.get("state"), part["param_groups"]
        for group in groups:
            for name, value in (inner.defaults if inner else {}).items():
                group.setdefault(name, value)
        if states is None:
            continue
        in_groups = {float(group.pop("step")) for group in groups if "step" in group}
        step = float(states.pop("common_step", max(in_groups, default=0.0)))
        if step and has_torch_adam:
            states["common_step"] = torch.tensor(step)
        for group in groups if step and not has_torch_adam else ():
            group["step"] = int(step)


def _parts(loaded: dict[Any, Any]) -> Iterator[dict[str, Any]]:
    """The groups, with states or not, of each optimizer in a chain, however it is nested."""
    if "param_groups" in loaded:
        yield loaded
        return
    for value in loaded.values():
        if isinstance(value, dict):
            yield from _parts(value)


def after_loading(optimizer: MegatronOptimizer) -> None:
    """Give every parameter a step of its own: megatron-core loads one tensor for all of them, and
    torch's Adam would then count every update once per parameter."""
    for _, adam in _torch_adams(optimizer):
        for state in adam.state.values():
            state["step"] = torch.as_tensor(state["step"], dtype=torch.float32).clone()
    _choose_kernels(optimizer)


def state_tensors(optimizer: MegatronOptimizer) -> Iterator[torch.Tensor]:
    """Adam's states, and the parameters it steps: float32 copies, or the model's own."""
    for inner in _chain(optimizer):
        for group in inner.optimizer.param_groups:
            yield from group["params"]
        for state in inner.optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, torch.Tensor))


def _torch_adams(
    optimizer: MegatronOptimizer,
) -> Iterator[tuple[MegatronOptimizer, torch.optim.AdamW]]:
    for inner in _chain(optimizer):
        if isinstance(inner.optimizer, torch.optim.AdamW):
            yield inner, inner.optimizer


def _chain(optimizer: MegatronOptimizer) -> list[MegatronOptimizer]:
    """A mixture's experts have an optimizer of their own."""
    return getattr(optimizer, "chained_optimizers", [optimizer])


def _set_states_but_step(
    inner: DistributedOptimizer, model_param: torch.nn.Parameter, tensors: dict[str, torch.Tensor]
) -> None:
    group, order = inner.model_param_group_index_map[model_param]
    main_param = inner.optimizer.param_groups[group]["params"][order]
    tensors = tensors | {"step": inner.optimizer.state[main_param]["step"]}
    type(inner)._set_main_param_and_optimizer_states(inner, model_param, tensors)
