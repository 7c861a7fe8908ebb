"""The student with what trains it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from scope_megatron.config import Config
from scope_megatron.convert.hf import load_hf_weights
from scope_megatron.model.build import build_model, padded_vocab_size, read_hf_config
from scope_megatron.parallel import platform
from scope_megatron.parallel.chunks import ModelChunks, ReplicatedModel
from scope_megatron.parallel.optimizer import (
    Waiting,
    build_optimizer,
    build_scheduler,
    wrap_student,
)
from scope_megatron.parallel.topology import Topology


@dataclass(frozen=True)
class Student:
    """The model that is trained, and what trains it."""

    hf: dict[str, Any]
    model: GPTModel | ModelChunks
    ddp: ReplicatedModel
    optimizer: MegatronOptimizer
    scheduler: OptimizerParamScheduler
    waiting: Waiting

    @property
    def vocab_size(self) -> int:
        return int(self.hf["vocab_size"])


def build_student(config: Config, topology: Topology) -> Student:
    """The student with the weights of ``model.student``, ready to train."""
    dtype = platform.resolve_dtype(config.model.dtype)
    hf = read_hf_config(config.model.student)
    model = _load(config, hf, topology, dtype)
    waiting = Waiting()
    ddp = wrap_student(model, config.optimizer, waiting)
    optimizer = build_optimizer(ddp, config.optimizer, dtype)
    updates = config.train.steps * config.train.updates_per_batch
    scheduler = build_scheduler(optimizer, config.optimizer, updates)
    return Student(hf, model, ddp, optimizer, scheduler, waiting)


def _load(
    config: Config, hf: dict[str, Any], topology: Topology, dtype: torch.dtype
) -> GPTModel | ModelChunks:
    """This rank's shard, in chunks with a virtual pipeline, with its weights."""
    parallel, padded = config.parallel, padded_width(config, topology)

    def build(chunk: int | None) -> GPTModel:
        aux_loss = config.objective.moe_aux_loss_coeff > 0
        return build_model(
            hf,
            topology,
            dtype,
            trainable=True,
            padded_vocab=padded,
            parallel=parallel,
            aux_loss=aux_loss,
            chunk=chunk,
        )

    model: GPTModel | ModelChunks
    if parallel.virtual_pipeline > 1:
        model = ModelChunks(build(chunk) for chunk in range(parallel.virtual_pipeline))
    else:
        model = build(None)
    load_hf_weights(model, config.model.student, hf, topology)
    return model


def padded_width(config: Config, topology: Topology) -> int:
    """One padded vocabulary for all models, so that their shards cover the same columns."""
    directories = [config.model.student, *(entry.path for entry in config.teachers.values())]
    largest = max(int(read_hf_config(directory)["vocab_size"]) for directory in directories)
    return padded_vocab_size(largest, topology.tp_size)
