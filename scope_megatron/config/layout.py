"""The ranks of a run: sizes that are `auto`, as numbers."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from scope_megatron.algorithm import readers_of
from scope_megatron.config.modeldir import ModelDirError, read_shape
from scope_megatron.machine import Machine

AUTO = "auto"
AUTO_SIZES = ("parallel.tensor", "parallel.data")
CPU_RANKS = 2  # without GPUs: enough to show every collective at work, on any two cores


def resolve_auto(values: dict[str, Any], machine: Machine) -> dict[str, Any]:
    """``parallel.tensor`` and ``parallel.data`` that are `auto`, as numbers.

    Together with the given sizes they fill the GPUs of all nodes, or the ranks that torchrun or
    Slurm started, as far as models and batch divide; of several ways the one with the most tensor
    ranks, within a node. On a CPU, where nobody started ranks: CPU_RANKS and one replica. Values
    that are wrong are left for the schema to refuse.
    """
    parallel = values.get("parallel")
    if not isinstance(parallel, dict) or AUTO not in (parallel.get("tensor"), parallel.get("data")):
        return values
    slots, nodes, exact = _slots(machine)
    slots = max(1, slots - _sampling_ranks(values))
    pipeline = _size(parallel.get("pipeline")) * _size(parallel.get("context"))
    tensors, datas = [_size(parallel.get("tensor"))], [_size(parallel.get("data"))]
    if parallel.get("tensor") == AUTO:
        tensors = _tensor_sizes(values, max(1, slots // nodes), nodes)
    if parallel.get("data") == AUTO:
        datas = _data_sizes(values, slots) if exact or machine.device == "cuda" else [1]
    fitting = [
        (tensor * data, tensor, data)
        for tensor in tensors
        for data in datas
        if tensor * data * pipeline <= slots and not (exact and tensor * data * pipeline < slots)
    ]
    _, tensor, data = max(fitting, default=(1, min(tensors), min(datas)))
    return values | {"parallel": parallel | _auto_only(parallel, tensor=tensor, data=data)}


def _auto_only(parallel: dict[str, Any], **sizes: int) -> dict[str, int]:
    return {name: size for name, size in sizes.items() if parallel.get(name) == AUTO}


def _slots(machine: Machine) -> tuple[int, int, bool]:
    """(ranks there is room for, nodes, whether just so many were started)."""
    cuda = machine.device == "cuda"  # on the CPU a tensor group may well span nodes
    world, local = (os.environ.get(name, "") for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if machine.here and world.isdigit() and int(world) > 0:
        per_node = int(local) if cuda and local.isdigit() and int(local) > 0 else int(world)
        return int(world), max(1, int(world) // per_node), True
    if cuda:
        return max(1, machine.gpus * machine.nodes), machine.nodes, False
    return max(CPU_RANKS, machine.nodes), 1, False


def _tensor_sizes(values: dict[str, Any], per_node: int, nodes: int) -> list[int]:
    """Sizes that divide every model of the run and suit the other settings."""
    common, experts = 0, False
    for path in _models(values):
        try:
            shape = read_shape(Path(str(path)).expanduser())
        except ModelDirError:
            continue  # the models' own rules say what is wrong
        whole = shape.experts > 0 and _size(_get(values, "parallel.expert")) > 1
        common = math.gcd(common, shape.heads, shape.query_groups, 0 if whole else shape.ffn)
        experts = experts or shape.experts > 0
    sequence = _get(values, "parallel.sequence") is True
    if experts and not sequence:  # such models train under both or under neither
        return [1]
    separate = _get(values, "rollout.placement") == "separate"
    engine = 1 if separate else _size(_get(values, "rollout.engine.tensor"))
    sizes = [
        size
        for size in range(1, per_node + 1)
        if common % size == 0
        and size % engine == 0
        and (nodes == 1 or per_node % size == 0)
        and not (sequence and size == 1)
    ]
    return sizes or [1]


def _models(values: dict[str, Any]) -> list[Any]:
    """The paths of the run's models, as they are given."""
    found = [_get(values, "model.student")]
    if _get(values, "algorithm.name") in (None, *readers_of("teacher.source")):  # None: scope
        entries = _get(values, "model.teachers")
        several = list(entries.values()) if isinstance(entries, dict) else []
        alike = not _get(values, "teacher.parallel")  # else they are cut otherwise
        for one in [_get(values, "model.teacher"), *several]:
            entry = one if isinstance(one, dict) else {"path": one}
            if alike and not entry.get("parallel"):
                found.append(entry.get("path"))
    return found


def _data_sizes(values: dict[str, Any], slots: int) -> list[int]:
    """Numbers of replicas that divide a step's batch."""
    kd = _get(values, "algorithm.name") in readers_of("train.batch_sequences")
    batch = _get(values, "train.batch_sequences" if kd else "rollout.prompts_per_step")
    updates = _size(_get(values, "train.updates_per_batch"))
    if not isinstance(batch, int):
        return [1]
    sizes = range(1, slots + 1)
    return [size for size in sizes if batch % size == 0 and batch // size >= updates] or [1]


def _get(values: dict[str, Any], key: str) -> Any:
    """The value at a dotted key of the nested values, None where there is none."""
    found: Any = values
    for name in key.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    return found


def _sampling_ranks(values: dict[str, Any]) -> int:
    """Ranks that rollout.ranks takes beside those of parallel."""
    if _get(values, "rollout.placement") != "separate":
        return 0
    ranks = _get(values, "rollout.ranks")
    return ranks if isinstance(ranks, int) and ranks > 0 else 0


def _size(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 1
