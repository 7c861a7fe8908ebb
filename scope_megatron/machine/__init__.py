"""The machine that settings are for, looked at without importing torch.

device       CPU or CUDA, and why: the one choice that torch, vLLM and the rules follow
gpus         what the driver lists, and what of it this process may use
builds       what the installed torch and vLLM were built for
packages     what a setting needs beside the project's own needs
"""

from scope_megatron.machine.device import (
    DETERMINISTIC,
    DEVICE_VARIABLE,
    Machine,
    choose,
    ranks_here,
    settle,
    validating_for,
)
from scope_megatron.machine.gpus import Gpu, visible_gpus
from scope_megatron.machine.packages import missing_packages

__all__ = [
    "DETERMINISTIC",
    "DEVICE_VARIABLE",
    "Gpu",
    "Machine",
    "choose",
    "missing_packages",
    "ranks_here",
    "settle",
    "validating_for",
    "visible_gpus",
]
