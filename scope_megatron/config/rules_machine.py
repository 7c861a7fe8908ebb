"""The rules between settings and the machine: device, ranks, GPUs, packages."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator

from scope_megatron.config.schema import Config
from scope_megatron.machine import Machine, choose, missing_packages, ranks_here, visible_gpus
from scope_megatron.machine.builds import vllm_is_for_cpu, vllm_version

_HEADROOM = 0.05  # of a GPU's memory, for its CUDA contexts


def machine_problems(config: Config, sampling: bool) -> Iterator[str]:
    """The device that was asked for, vLLM's build, ranks against GPUs.

    ``sampling``: whether the command needs the engine.
    """
    machine = choose(config.platform.device)
    if machine.problem:
        yield f"platform.device: {machine.problem}"
        return
    if sampling:
        yield from engine_build_problems("platform.device", machine)
    if machine.device == "cuda":
        yield from _too_few_gpus(config, machine)
        yield from _torn_engine(config, machine)


def engine_build_problems(key: str, machine: Machine) -> Iterator[str]:
    """vLLM's builds are for GPUs or for the CPU; ``key`` is what the user sets the device by."""
    if not machine.packages or not vllm_version():
        return
    if machine.device == "cuda" and vllm_is_for_cpu() and machine.here:
        yield (
            f"{key}: is cuda but vLLM {vllm_version()} is a CPU build; "
            "remove the environment and run `make env` on this machine, or set it to auto or cpu"
        )
    elif machine.device == "cpu" and not vllm_is_for_cpu():
        yield (
            f"{key}: makes it the CPU ({machine.why}) but vLLM {vllm_version()} is built "
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
    names = ("data", "pipeline", "context", "tensor")
    sizes = {name: getattr(parallel, name) for name in names}
    for name, size in sizes.items():  # the divisors of sizes that are valid are valid
        free = max(1, machine.gpus * machine.nodes - config.sampling_ranks)
        most = free * size // math.prod(sizes.values())
        sizes[name] = max(n for n in range(1, size + 1) if size % n == 0 and n <= max(1, most))
    changed = [f"parallel.{n}={size}" for n, size in sizes.items() if size != getattr(parallel, n)]
    if not changed:  # what trains is one rank already
        changed = [f"rollout.ranks={max(1, machine.gpus * machine.nodes - config.training_ranks)}"]
    more = ", or give more with --nodes or --gpus-per-node" if not machine.here else ""
    yield (
        f"parallel: {sizes_of(config)} "
        f"makes {what}; set {' and '.join(changed)}{more or ', or platform.device=cpu'}"
    )


def _torn_engine(config: Config, machine: Machine) -> Iterator[str]:
    """An engine's ranks are neighbours in the job: on one node, unless they begin amid a node."""
    per_node, tensor = ranks_here(config.world_size, machine), config.engine.tensor
    if not config.sampling_ranks or not per_node or per_node >= config.world_size:
        return
    first, last = config.training_ranks, config.world_size
    torn = next((r for r in range(first, last, tensor) if r % per_node + tensor > per_node), None)
    if torn is not None:
        yield (
            f"rollout.engine.tensor: is {tensor} but the engine of ranks {torn} to "
            f"{torn + tensor - 1} lies on two nodes, as the first {first} of {last} ranks train "
            f"and a node has {per_node}; make both numbers multiples of it"
        )


def sizes_of(config: Config) -> str:
    """`tensor 2 x pipeline 1 x data 1`, context where there is more than one, sampling ranks."""
    parallel = config.parallel
    context = f" x context {parallel.context}" if parallel.context > 1 else ""
    sampling = f" + rollout.ranks {config.sampling_ranks}" if config.sampling_ranks else ""
    return (
        f"tensor {parallel.tensor} x pipeline {parallel.pipeline}{context} x data {parallel.data}"
        f"{sampling}"
    )


def _plural(word: str, count: int) -> str:
    return f"{word} is" if count == 1 else f"{word}s are"


def memory_problems(config: Config) -> Iterator[str]:
    """A GPU has less free memory than the engine will ask for."""
    machine, share = choose(config.platform.device), config.engine.gpu_memory_utilization
    key = "rollout.engine.gpu_memory_utilization"
    first = config.training_ranks if config.separate else 0
    yield from full_gpu_problems(key, machine, share, config.world_size, first)


def full_gpu_problems(
    key: str, machine: Machine, share: float, ranks: int, first: int = 0
) -> Iterator[str]:
    """A GPU of this machine has less free memory than the ``share`` that ``key`` gives an engine.

    ``first``: the first of the ``ranks`` that holds an engine.

    Looked at where a run begins, not in its ranks: those share nothing but may start again while
    the memory of those before them is still being freed.
    """
    if machine.device != "cuda" or not machine.here or machine.problem or "RANK" in os.environ:
        return
    for number, gpu in list(enumerate(visible_gpus()[:ranks]))[first:]:
        if not gpu.total_mib or gpu.free_mib is None or gpu.free_mib >= share * gpu.total_mib:
            continue
        lower = math.floor((gpu.free_mib / gpu.total_mib - _HEADROOM) * 100) / 100
        total, free = gpu.total_mib / 1024, gpu.free_mib / 1024
        yield (
            f"{key}: is {share:g} of {total:.1f} GiB but GPU {number} ({gpu.name}) has "
            f"{free:.1f} GiB free; end what uses it, choose others with CUDA_VISIBLE_DEVICES"
            + (f", or set it to {lower:g} or less" if lower > 0 else "")
        )
        return


def package_problems(config: Config, sampling: bool) -> Iterator[str]:
    """Packages that the settings need and that are not installed."""
    machine = choose(config.platform.device)
    if not machine.packages:
        return
    sets = [source for group in config.data.sources().values() for source in group]
    folders = any(source.hub is not None or source.path.is_dir() for source in sets)
    needs = [
        ("platform.device", "every run", ["torch", "megatron.core"], True),
        ("rollout", "sampling responses", ["vllm", "math_verify"], sampling),
        ("data.train", "every run", ["pyarrow"], True),
        ("data.train", "a Hub name or a folder", ["datasets"], folders),
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
