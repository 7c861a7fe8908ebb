"""The student with what trains it, and the frozen model beside it on the same ranks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from torch import Tensor
from torch.nn import Parameter

from scope_megatron.config import Config, ParallelConfig
from scope_megatron.convert.gather import global_parameters
from scope_megatron.convert.hf import ShardReader, load_hf_weights
from scope_megatron.convert.mapping import is_expert
from scope_megatron.model.build import build_model, padded_vocab_size, read_hf_config
from scope_megatron.model.streamed import StreamedParameters, hollow
from scope_megatron.parallel import platform
from scope_megatron.parallel.optimizer import (
    Waiting,
    build_optimizer,
    build_scheduler,
    wrap_student,
)
from scope_megatron.parallel.topology import Topology


@dataclass(frozen=True)
class FrozenModel:
    """A model that is only scored: the teacher, or grpo's reference."""

    model: GPTModel
    vocab_size: int
    streamed: StreamedParameters | None = None  # teacher.offload

    def enter(self) -> None:
        """Be ready to be scored."""
        if self.streamed is not None:
            self.streamed.enter()

    def rest(self, keep_head: bool) -> None:
        """No forward pass for a while; ``keep_head``: its output weight is still asked for."""
        if self.streamed is not None:
            self.streamed.rest() if keep_head else self.streamed.leave()

    def tensors(self) -> list[Tensor]:
        """What it holds of the device's memory."""
        return [*self.model.parameters(), *(self.streamed.buffers() if self.streamed else [])]


@dataclass(frozen=True)
class Student:
    """The model that is trained, and what trains it."""

    hf: dict[str, Any]
    model: GPTModel
    ddp: DistributedDataParallel
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
    padded, parallel = _padded(config, topology), config.parallel
    model = _load(config.model.student, hf, topology, dtype, padded, True, parallel)
    waiting = Waiting()
    ddp = wrap_student(model, config.optimizer, waiting)
    optimizer = build_optimizer(ddp, config.optimizer, dtype)
    updates = config.train.steps * config.train.updates_per_batch
    scheduler = build_scheduler(optimizer, config.optimizer, updates)
    return Student(hf, model, ddp, optimizer, scheduler, waiting)


def build_frozen(config: Config, topology: Topology) -> FrozenModel | None:
    """The teacher (scope, opd) or the initial student as reference (grpo), None without need."""
    if not config.has_frozen:
        return None
    directory = config.model.teacher if config.loads_teacher else config.model.student
    assert directory is not None
    dtype = platform.resolve_dtype(config.frozen_dtype)
    hf = read_hf_config(directory)
    padded, vocab = _padded(config, topology), int(hf["vocab_size"])
    if config.teacher.offload == "none":
        return FrozenModel(_load(directory, hf, topology, dtype, padded, False), vocab)
    model = build_model(hf, topology, dtype, trainable=False, padded_vocab=padded, hollow=True)
    shapes = hollow(model, platform.device())
    reader = ShardReader(directory, hf)
    names = {parameter: name for name, parameter in global_parameters(model)}

    def read(parameter: Parameter) -> Tensor:
        name = names[parameter]
        rank = topology.shard_rank(is_expert(name))
        return reader.shard(name, tuple(shapes[parameter]), rank)

    return FrozenModel(model, vocab, StreamedParameters(model, shapes, read))


def build_reference(config: Config, topology: Topology) -> FrozenModel | None:
    """The initial student beside a teacher (objective.extrapolation), None without need."""
    if not config.extrapolates:
        return None
    directory, dtype = config.model.student, platform.resolve_dtype(config.model.dtype)
    hf = read_hf_config(directory)
    model = _load(directory, hf, topology, dtype, _padded(config, topology), False)
    return FrozenModel(model, int(hf["vocab_size"]))


def _load(
    directory: Path,
    hf: dict[str, Any],
    topology: Topology,
    dtype: torch.dtype,
    padded_vocab: int,
    trainable: bool,
    parallel: ParallelConfig | None = None,
) -> GPTModel:
    model = build_model(
        hf, topology, dtype, trainable=trainable, padded_vocab=padded_vocab, parallel=parallel
    )
    load_hf_weights(model, directory, hf, topology)
    return model


def _padded(config: Config, topology: Topology) -> int:
    """One padded width for both models, so that their shards cover the same columns."""
    teacher = config.model.teacher if config.loads_teacher else None
    directories = [d for d in (config.model.student, teacher) if d is not None]
    largest = max(int(read_hf_config(d)["vocab_size"]) for d in directories)
    return padded_vocab_size(largest, topology.tp_size)
