"""CPU or CUDA, and why: chosen once, before torch is imported, and followed by everything.

``platform.device`` says auto, cpu or cuda; where it says auto, the environment variable
SCOPE_DEVICE says the same (the tests set it, and a run sets it for its ranks). auto takes CUDA
when the driver, torch's build and vLLM's build agree.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

from scope_megatron.machine import builds, gpus

DEVICE_VARIABLE = "SCOPE_DEVICE"
# What libraries ask their kernels for the same bits by; each reads its own once, at its start.
DETERMINISTIC = {
    "SCOPE_DETERMINISTIC": "1",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "NVTE_ALLOW_NONDETERMINISTIC_ALGO": "0",  # Transformer Engine
    "VLLM_BATCH_INVARIANT": "1",
}
SETTINGS = ("auto", "cpu", "cuda")
REMAKE = "remove the environment and run `make env` on this machine"
MAKES = 13  # the CUDA of the torch that `make env` installs
_DRIVERS = {11: 450, 12: 525, 13: 580}  # the first driver of each CUDA on Linux (NVIDIA's table)

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class Machine:
    """Device, GPUs and nodes of a run."""

    device: Device
    gpus: int = 0  # of a node, that the run may use; 0 on the CPU
    nodes: int = 1
    why: str = ""  # the device, for the line that tells of it
    problem: str = ""  # `what; fix` when the device that was asked for cannot be had
    here: bool = True  # this machine, not another one that settings are validated for
    packages: bool = True  # what is installed here is what the run will find

    def line(self) -> str:
        """`device: CPU; no NVIDIA GPU is here`."""
        return f"device: {'CUDA' if self.device == 'cuda' else 'CPU'}; {self.why}"


_elsewhere: ContextVar[Machine | None] = ContextVar("elsewhere", default=None)


@contextmanager
def validating_for(gpus: int, nodes: int = 1, *, packages: bool = True) -> Iterator[None]:
    """Inside, settings are for ``nodes`` machines with ``gpus`` GPUs each, whatever is here.

    ``packages``: whether they have the packages of this environment (not in a container).
    """
    device: Device = "cuda" if gpus else "cpu"
    machine = Machine(device, gpus, nodes, "as told", here=False, packages=packages)
    token = _elsewhere.set(machine)
    try:
        yield
    finally:
        _elsewhere.reset(token)


def choose(setting: str) -> Machine:
    """The machine of a run with this ``platform.device``."""
    if (told := _elsewhere.get()) is not None:
        return _elsewhere_for(setting, told)
    source, wanted = "platform.device", setting
    if setting == "auto":
        source, wanted = DEVICE_VARIABLE, os.environ.get(DEVICE_VARIABLE) or "auto"
    if wanted not in SETTINGS:
        problem = f"is auto and {source} is {wanted!r}; set that to {', '.join(SETTINGS)}"
        return Machine("cpu", problem=problem)
    if wanted == "cpu":
        return Machine("cpu", why=_why_cpu())
    what, fix = _obstacle(engine=wanted == "auto")
    if not what:
        return Machine("cuda", len(gpus.visible_gpus()), why=_builds())
    if wanted == "auto":
        return Machine("cpu", why=_why_cpu())
    asked = "" if source == "platform.device" else f" by {source}"
    return Machine("cuda", problem=f"is cuda{asked} but {what}; {fix or 'set it to auto or cpu'}")


def _why_cpu() -> str:
    if os.environ.get(DEVICE_VARIABLE) == "cpu":
        return f"{DEVICE_VARIABLE} is cpu"
    what, fix = _obstacle(engine=True)
    if not what:
        return "platform.device is cpu"
    return f"{what}; to use it, {fix}" if fix else what


def _elsewhere_for(setting: str, told: Machine) -> Machine:
    if setting == "cpu":
        return Machine("cpu", 0, told.nodes, told.why, here=False, packages=told.packages)
    if setting == "cuda" and not told.gpus:
        problem = "is cuda but the machine has no GPUs (--gpus-per-node 0); set it to auto or cpu"
        return Machine("cuda", 0, told.nodes, problem=problem, here=False, packages=told.packages)
    return told


def _obstacle(engine: bool) -> tuple[str, str]:
    """(what keeps CUDA from being used here, what to do about it); ("", "") if nothing does.

    ``engine``: whether vLLM's build counts; a run that samples nothing does without it.
    """
    installed = gpus.installed_gpus()
    if not installed:
        return "no NVIDIA GPU is here", ""
    name = f"{len(installed)} x {installed[0].name}"
    if not gpus.visible_gpus():
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        return f"CUDA_VISIBLE_DEVICES={hidden} hides {name}", "unset it"
    torch = builds.torch_cuda()
    driver = gpus.driver_cuda()
    if torch is None:
        what = f"{name}: torch {builds.torch_version() or '(missing)'} is no CUDA build"
        if driver is not None and driver[0] < MAKES:
            return what, f"install driver {_DRIVERS[MAKES]} or newer, then {REMAKE}"
        return what, REMAKE
    if driver is None:
        return f"{name}: the driver's libcuda.so.1 does not answer", "install NVIDIA's driver"
    if driver[0] < torch[0]:  # within a major version, old drivers run newer builds
        first = _DRIVERS.get(torch[0])
        wanted = f"{first} or newer" if first else "a newer one"
        return (
            f"{name}: driver {installed[0].driver} speaks CUDA {_dotted(driver)}, "
            f"torch is built for {_dotted(torch)}",
            f"install driver {wanted}",
        )
    if engine and builds.vllm_is_for_cpu():
        return f"{name}: vLLM {builds.vllm_version()} is a CPU build", REMAKE
    return "", ""


def _builds() -> str:
    """`2 x NVIDIA H100; driver for CUDA 13.0, torch 2.13.0 for 13.0, vLLM 0.32.0`."""
    visible, driver, torch = gpus.visible_gpus(), gpus.driver_cuda(), builds.torch_cuda()
    assert driver is not None and torch is not None  # no obstacle
    return (
        f"{len(visible)} x {visible[0].name}; driver for CUDA {_dotted(driver)}, "
        f"torch {builds.torch_version()} for {_dotted(torch)}, "
        f"vLLM {builds.vllm_version() or '(missing)'}"
    )


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def ranks_here(world_size: int, machine: Machine) -> int | None:
    """Ranks of one node; None when only the launcher knows. For this process, or for ``machine``
    when that is another one."""
    if not machine.here:
        return -(-world_size // machine.nodes)
    local = os.environ.get("LOCAL_WORLD_SIZE", "")
    if local.isdigit():
        return int(local)
    return None if "WORLD_SIZE" in os.environ else world_size


def settle(device: str, tensor: int, deterministic: bool = False) -> None:
    """Make this process and its children follow the choice. Call before torch is imported."""
    os.environ[DEVICE_VARIABLE] = device
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif tensor > 1:
        # Kernels then start in the order of their launches: a collective of tensor parallelism
        # is not queued behind the product that it should overlap with. Read by CUDA's first call.
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    if device == "cuda" and deterministic:
        os.environ |= DETERMINISTIC
