"""The frozen models of a run, from their checkpoints, each in its layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import Parameter

from scope_megatron.config import Config, TeacherEntry
from scope_megatron.config.sections.model import EVERY_ROW
from scope_megatron.config.sections.teacher import TeacherParallel
from scope_megatron.convert.gather import global_parameters
from scope_megatron.convert.hf import ShardReader, load_hf_weights
from scope_megatron.convert.mapping import is_expert
from scope_megatron.learn.frozen.model import FrozenModel
from scope_megatron.learn.frozen.output import OutputWeight
from scope_megatron.learn.frozen.travel import Travel
from scope_megatron.learn.models import padded_width
from scope_megatron.model.build import build_model, padded_vocab_size, read_hf_config
from scope_megatron.model.streamed import StreamedParameters, hollow
from scope_megatron.parallel import platform
from scope_megatron.parallel.second import create_second_topology, using
from scope_megatron.parallel.topology import Topology


def build_frozen(config: Config, topology: Topology) -> tuple[FrozenModel, ...]:
    """The teachers (scope, opd), each checkpoint once; or the initial student as reference (grpo);
    none without need (collective over all ranks)."""
    same: dict[Path, list[str]] = {}
    for tag, entry in config.frozen.items():
        same.setdefault(entry.path.resolve(), []).append(tag)
    layouts: dict[TeacherParallel, Topology] = {}
    padded = padded_width(config, topology)
    exact = config.needs_teacher and config.objective.kl != "sampled"
    found = []
    for tags in same.values():
        entry = config.frozen[tags[0]]
        own = None
        if entry.parallel is not None:
            if entry.parallel not in layouts:
                layouts[entry.parallel] = _topology_of(entry.parallel, topology)
            own = layouts[entry.parallel]
        found.append(_build(entry, tuple(tags), topology, own, padded, exact))
    return tuple(found)


def build_reference(config: Config, topology: Topology) -> FrozenModel | None:
    """The initial student beside a teacher (objective.extrapolation), None without need."""
    if not config.extrapolates:
        return None
    entry = TeacherEntry(path=config.model.student, dtype=config.model.dtype, offload="none")
    return _build(entry, (EVERY_ROW,), topology, None, padded_width(config, topology), False)


def _topology_of(parallel: TeacherParallel, topology: Topology) -> Topology:
    return create_second_topology(
        parallel.tensor,
        parallel.pipeline,
        parallel.sequence,
        expert=parallel.expert,
        context=parallel.context,
        timeout_s=topology.timeout_s,
    )


def _build(
    entry: TeacherEntry,
    tags: tuple[str, ...],
    topology: Topology,
    own: Topology | None,
    padded: int,
    exact: bool,
) -> FrozenModel:
    """``own``: its layout, where that is not the student's ``topology``; ``padded``: the vocabulary
    as the student's is."""
    assert entry.dtype is not None, "Config.frozen leaves nothing open"
    dtype, hf = platform.resolve_dtype(entry.dtype), read_hf_config(entry.path)
    vocab, offload = int(hf["vocab_size"]), entry.offload == "cpu"
    place = topology if own is None else own
    width = padded if own is None else padded_vocab_size(vocab, own.tp_size)
    streamed = None
    with using(place):
        if offload:
            model = build_model(hf, place, dtype, trainable=False, padded_vocab=width, hollow=True)
            streamed = _stream(model, entry.path, hf, place)
        else:
            model = build_model(hf, place, dtype, trainable=False, padded_vocab=width)
            load_hf_weights(model, entry.path, hf, place)
    if own is None:
        return FrozenModel(model, vocab, place, streamed, tags)
    output = None
    if exact and topology.is_last_stage:
        shape = padded // topology.tp_size, int(hf["hidden_size"])

        def read() -> Tensor:
            reader = ShardReader(entry.path, hf)
            return reader.shard("output_layer.weight", shape, topology.tp_rank)

        output = OutputWeight(read, dtype, offload)
    travel = Travel(topology, own, dtype, int(hf["hidden_size"]))
    return FrozenModel(model, vocab, place, streamed, tags, travel, output)


def _stream(
    model: Any, directory: Path, hf: dict[str, Any], topology: Topology
) -> StreamedParameters:
    shapes = hollow(model, platform.device())
    reader = ShardReader(directory, hf)
    names = {parameter: name for name, parameter in global_parameters(model)}

    def read(parameter: Parameter) -> Tensor:
        name = names[parameter]
        rank = topology.shard_rank(is_expert(name))
        return reader.shard(name, tuple(shapes[parameter]), rank)

    return StreamedParameters(model, shapes, read)
