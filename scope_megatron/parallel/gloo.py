"""One event loop for all of a process's gloo groups.

torch gives every gloo group a device of its own, whose thread wakes a hundred times a second. A
rank has over thirty groups (megatron-core's and vLLM's), which costs a few per cent of a core.
"""

from __future__ import annotations

import functools
import os
from datetime import timedelta
from typing import Any

from torch.distributed import ProcessGroupGloo, distributed_c10d


@functools.cache
def _devices() -> list[Any]:
    """Of this process: where GLOO_SOCKET_IFNAME says, as torch itself reads it."""
    names = os.environ.get("GLOO_SOCKET_IFNAME", "")
    if not names:
        return [ProcessGroupGloo.create_default_device()]
    return [ProcessGroupGloo.create_device(interface=name) for name in names.split(",")]


class _SharedGloo(ProcessGroupGloo):
    """A gloo group on this process's devices."""

    def __init__(self, store: Any, rank: int, size: int, timeout: timedelta) -> None:
        options = ProcessGroupGloo._Options()
        options._devices, options._timeout = _devices(), timeout
        options._threads = 2 * len(options._devices)  # torch's own number
        super().__init__(store, rank, size, options)


def share_devices() -> None:
    """From now on ``new_group`` makes gloo groups that share this process's devices."""
    distributed_c10d.ProcessGroupGloo = _SharedGloo
