"""Gradient buffers, optimizer and learning-rate schedule of the student."""

from __future__ import annotations

import torch
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer import MegatronOptimizer, get_megatron_optimizer
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from scope_megatron.config import OptimizerConfig


def wrap_student(model: GPTModel, settings: OptimizerConfig) -> DistributedDataParallel:
    """Give the student gradient buffers; gradients are summed over the data-parallel ranks."""
    ddp = DistributedDataParallel(
        config=model.config,
        ddp_config=DistributedDataParallelConfig(
            grad_reduce_in_fp32=True,
            overlap_grad_reduce=False,
            use_distributed_optimizer=settings.distributed,
            average_in_collective=False,
        ),
        module=model,
    )
    model.config.finalize_model_grads_func = _finalize_without_division
    model.config.no_sync_func = ddp.no_sync
    return ddp


def _finalize_without_division(
    model: list[torch.nn.Module], num_tokens: torch.Tensor | None = None, **kwargs: object
) -> None:
    """megatron-core's reductions; the losses are normalised already, so no division by tokens."""
    finalize_model_grads(model, None, **kwargs)


def build_optimizer(
    model: DistributedDataParallel, settings: OptimizerConfig, dtype: torch.dtype
) -> MegatronOptimizer:
    """Adam with decoupled weight decay (fused by TE or Apex when they import)."""
    return get_megatron_optimizer(
        MegatronOptimizerConfig(
            optimizer="adam",
            lr=settings.lr,
            min_lr=0.0,
            weight_decay=settings.weight_decay,
            adam_beta1=settings.beta1,
            adam_beta2=settings.beta2,
            adam_eps=settings.eps,
            clip_grad=settings.clip_grad,
            bf16=dtype == torch.bfloat16,
            params_dtype=dtype,
            use_distributed_optimizer=settings.distributed,
        ),
        [model],
    )


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
