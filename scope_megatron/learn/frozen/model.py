"""A model that is only scored: a teacher, or grpo's reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron.core.models.gpt import GPTModel
from torch import Tensor
from torch.nn import Parameter

from scope_megatron.config import Config, TeacherEntry
from scope_megatron.config.sections.model import EVERY_ROW
from scope_megatron.convert.gather import global_parameters
from scope_megatron.convert.hf import ShardReader
from scope_megatron.convert.mapping import is_expert
from scope_megatron.learn.models import load_model, padded_width
from scope_megatron.model.build import build_model, read_hf_config
from scope_megatron.model.streamed import StreamedParameters, hollow
from scope_megatron.parallel import platform
from scope_megatron.parallel.topology import Topology


@dataclass(frozen=True)
class FrozenModel:
    """A teacher, or grpo's reference."""

    model: GPTModel
    vocab_size: int
    streamed: StreamedParameters | None = None  # teacher.offload
    tags: tuple[str, ...] = (EVERY_ROW,)  # in model.teachers

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


def number_of(models: Sequence[FrozenModel], tag: str) -> int:
    """Which of the models scores a row with this tag; a single one scores all rows."""
    if len(models) == 1:
        return 0
    return next(number for number, model in enumerate(models) if tag in model.tags)


def build_frozen(config: Config, topology: Topology) -> tuple[FrozenModel, ...]:
    """The teachers (scope, opd), each checkpoint once; or the initial student as reference (grpo);
    none without need."""
    if not config.has_frozen:
        return ()
    entries = config.teachers
    if not config.needs_teacher:
        dtype, offload = config.frozen_dtype, config.teacher.offload
        entries = {EVERY_ROW: TeacherEntry(path=config.model.student, dtype=dtype, offload=offload)}
    same: dict[Path, list[str]] = {}
    for tag, entry in entries.items():
        same.setdefault(entry.path.resolve(), []).append(tag)
    padded = padded_width(config, topology)
    return tuple(_build(entries[tags[0]], topology, padded, tuple(tags)) for tags in same.values())


def _build(
    entry: TeacherEntry, topology: Topology, padded: int, tags: tuple[str, ...]
) -> FrozenModel:
    assert entry.dtype is not None, "Config.teachers leaves nothing open"
    dtype, hf = platform.resolve_dtype(entry.dtype), read_hf_config(entry.path)
    vocab = int(hf["vocab_size"])
    if entry.offload == "none":
        model = load_model(entry.path, hf, topology, dtype, padded, trainable=False)
        return FrozenModel(model, vocab, tags=tags)
    model = build_model(hf, topology, dtype, trainable=False, padded_vocab=padded, hollow=True)
    shapes = hollow(model, platform.device())
    reader = ShardReader(entry.path, hf)
    names = {parameter: name for name, parameter in global_parameters(model)}

    def read(parameter: Parameter) -> Tensor:
        name = names[parameter]
        rank = topology.shard_rank(is_expert(name))
        return reader.shard(name, tuple(shapes[parameter]), rank)

    return FrozenModel(model, vocab, StreamedParameters(model, shapes, read), tags)
