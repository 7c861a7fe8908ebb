"""Ranks and the machine: sizes that are `auto`, and the rules between layout, device and GPUs."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scope_megatron.config.modeldir import ModelDirError, read_shape
from scope_megatron.config.schema import Config
from scope_megatron.machine import Machine, choose, missing_packages, ranks_here, visible_gpus
from scope_megatron.machine.builds import vllm_is_for_cpu, vllm_version

AUTO = "auto"
AUTO_SIZES = ("parallel.tensor", "parallel.data")
CPU_RANKS = 2  # without GPUs: enough to show every collective at work, on any two cores
_HEADROOM = 0.05  # of a GPU's memory, for its CUDA contexts


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
    pipeline = _size(parallel.get("pipeline"))
    tensors, datas = [_size(parallel.get("tensor"))], [_size(parallel.get("data"))]
    if parallel.get("tensor") == AUTO:
        tensors = _tensor_sizes(values, slots // nodes, nodes)
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
    names = ["student", "teacher"] if _get(values, "algorithm.name") in _TAUGHT else ["student"]
    for path in (_get(values, f"model.{name}") for name in names):
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
    engine = _size(_get(values, "rollout.engine.tensor"))
    sizes = [
        size
        for size in range(1, per_node + 1)
        if common % size == 0
        and size % engine == 0
        and (nodes == 1 or per_node % size == 0)
        and not (sequence and size == 1)
    ]
    return sizes or [1]


_TAUGHT = (None, "scope", "opd")  # None: the default, scope


def _data_sizes(values: dict[str, Any], slots: int) -> list[int]:
    """Numbers of replicas that divide a step's batch."""
    kd = _get(values, "algorithm.name") == "kd"
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


def _size(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 1


def machine_problems(config: Config, sampling: bool) -> Iterator[str]:
    """The device that was asked for, vLLM's build, ranks against GPUs.

    ``sampling``: whether the command needs the engine.
    """
    machine = choose(config.platform.device)
    if machine.problem:
        yield f"platform.device: {machine.problem}"
        return
    if sampling and machine.packages and vllm_version():
        yield from _engine_build(machine)
    if machine.device == "cuda":
        yield from _too_few_gpus(config, machine)


def _engine_build(machine: Machine) -> Iterator[str]:
    if machine.device == "cuda" and vllm_is_for_cpu() and machine.here:
        yield (
            f"platform.device: is cuda but vLLM {vllm_version()} is a CPU build; "
            "remove the environment and run `make env` on this machine, or set it to auto or cpu"
        )
    elif machine.device == "cpu" and not vllm_is_for_cpu():
        yield (
            f"platform.device: makes it the CPU ({machine.why}) but vLLM {vllm_version()} is built "
            "for GPUs; make an environment for the CPU: `DEVICE=cpu make env VENV=.venv-cpu`"
        )


def _too_few_gpus(config: Config, machine: Machine) -> Iterator[str]:
    parallel = config.parallel
    ranks = ranks_here(config.world_size, machine)
    if ranks is None or ranks <= machine.gpus:
        return
    what = f"{ranks} ranks per node but {machine.gpus} {_plural('GPU', machine.gpus)} visible"
    if machine.here and machine.gpus == 1 and "SLURM_JOB_ID" in os.environ:
        fix = "ask Slurm for --gpus-per-node, not --gpus-per-task or --gpu-bind: each rank "
        yield f"parallel: {what}; {fix}must see all GPUs of its node"
        return
    sizes = {"data": parallel.data, "pipeline": parallel.pipeline, "tensor": parallel.tensor}
    for name, size in sizes.items():  # the divisors of sizes that are valid are valid
        most = machine.gpus * machine.nodes * size // math.prod(sizes.values())
        sizes[name] = max(n for n in range(1, size + 1) if size % n == 0 and n <= max(1, most))
    changed = [f"parallel.{n}={size}" for n, size in sizes.items() if size != getattr(parallel, n)]
    more = ", or give more with --nodes or --gpus-per-node" if not machine.here else ""
    yield (
        f"parallel: tensor {parallel.tensor} x pipeline {parallel.pipeline} x data {parallel.data} "
        f"makes {what}; set {' and '.join(changed)}{more or ', or platform.device=cpu'}"
    )


def _plural(word: str, count: int) -> str:
    return f"{word} is" if count == 1 else f"{word}s are"


def memory_problems(config: Config) -> Iterator[str]:
    """A GPU of this machine has less free memory than the engine will ask for.

    Looked at where a run begins, not in its ranks: those share nothing but may start again while
    the memory of those before them is still being freed.
    """
    machine = choose(config.platform.device)
    if machine.device != "cuda" or not machine.here or machine.problem or "RANK" in os.environ:
        return
    share = config.engine.gpu_memory_utilization
    for number, gpu in enumerate(visible_gpus()[: config.world_size]):
        if not gpu.total_mib or gpu.free_mib is None or gpu.free_mib >= share * gpu.total_mib:
            continue
        lower = math.floor((gpu.free_mib / gpu.total_mib - _HEADROOM) * 100) / 100
        total, free = gpu.total_mib / 1024, gpu.free_mib / 1024
        yield (
            f"rollout.engine.gpu_memory_utilization: is {share:g} of {total:.1f} GiB but GPU "
            f"{number} ({gpu.name}) has {free:.1f} GiB free; end what uses it, choose others with "
            "CUDA_VISIBLE_DEVICES" + (f", or set it to {lower:g} or less" if lower > 0 else "")
        )
        return


def package_problems(config: Config, sampling: bool) -> Iterator[str]:
    """Packages that the settings need and that are not installed."""
    machine = choose(config.platform.device)
    if not machine.packages:
        return
    files = [*config.data.train, *([config.data.eval] if config.data.eval else [])]
    needs = [
        ("platform.device", "every run", ["torch", "megatron.core"], True),
        ("rollout", "sampling responses", ["vllm", "math_verify"], sampling),
        ("data.train", ".parquet", ["pyarrow"], any(f.suffix == ".parquet" for f in files)),
        ("objective.kernel", "triton", ["triton"], config.objective.kernel == "triton"),
        ("logging.tensorboard", "true", ["tensorboard"], config.logging.tensorboard),
        ("logging.wandb_project", "W&B", ["wandb"], config.logging.wandb_project is not None),
    ]
    turn_off = {
        "objective.kernel": "set it to auto or torch",
        "logging.tensorboard": "set it to false",
        "logging.wandb_project": "set it to null",
    }
    for key, reason, modules, needed in needs:
        if not needed:
            continue
        for module, install in missing_packages(modules):
            other = f", or {turn_off[key]}" if key in turn_off else ""
            yield f"{key}: {reason} needs {module}, which is not installed; {install}{other}"
