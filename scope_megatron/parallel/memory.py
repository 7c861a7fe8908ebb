"""Memory of tensors by tenant and phase: who holds how much of the device, and when it is most.

A tenant is whatever keeps tensors between phases: student, gradients, optimizer, frozen models,
engine. What a phase makes beyond them (activations, logits, temporaries of the optimizer) is its
activations. On CUDA the allocator counts those; on a CPU nobody does, and :class:`TensorPeak`
watches every operator where that is asked for.

    tenants = Tenants()
    tenants.add("student", lambda: model.parameters())
    tenants.held()                                  # {"student": bytes}, at any time
    with TensorPeak() as watched: work()            # watched.peak: bytes made by work, at most
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from scope_megatron.parallel import platform
from scope_megatron.parallel.agree import all_max

ACTIVATIONS = "activations"
TensorSource = Callable[[], Iterable[Tensor]]


class Tenants:
    """Tensors of each tenant, counted by the storages behind them on this rank's device.

    A storage that two tenants hold is the first one's. Tensors elsewhere (host memory, beside a
    GPU) do not count.
    """

    def __init__(self) -> None:
        self._sources: dict[str, TensorSource] = {}

    def add(self, name: str, tensors: TensorSource) -> None:
        """Count what ``tensors()`` gives, at the time of counting, as ``name``'s."""
        self._sources[name] = tensors

    def held(self) -> dict[str, int]:
        """Bytes of each tenant now."""
        device, seen = platform.device().type, set[int]()
        found = dict.fromkeys(self._sources, 0)
        for name, source in self._sources.items():
            for tensor in source():
                storage = tensor.untyped_storage()
                if tensor.device.type == device and storage.data_ptr() not in seen:
                    seen.add(storage.data_ptr())
                    found[name] += storage.nbytes()
        return found


class PhaseMemory:
    """Memory of the phases of a step: :meth:`enter` and :meth:`leave` each, then :meth:`pop`.

    ``watch``: on a CPU, count activations by watching every operator (slow); on CUDA they are
    always counted.
    """

    def __init__(self, tenants: Tenants, watch: bool = False) -> None:
        self._tenants, self._watch = tenants, watch
        self._phases: dict[str, dict[str, int]] = {}
        self._watching: tuple[TensorPeak, ExitStack] | None = None
        self._before = 0
        self.peak: tuple[str, dict[str, int]] | None = None  # phase and tenants, since the start

    def enter(self, phase: str) -> None:
        """A phase begins."""
        if platform.has_cuda():
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
        elif self._watch:
            stack = ExitStack()
            self._watching = stack.enter_context(TensorPeak()), stack

    def leave(self, phase: str) -> None:
        """The phase is over, by an error too; what tenants hold is looked at now."""
        made = self._made()
        found = self._tenants.held() | ({} if made is None else {ACTIVATIONS: made})
        before = self._phases.get(phase)
        if before is None or sum(before.values()) < sum(found.values()):
            self._phases[phase] = found
        if self.peak is None or sum(self.peak[1].values()) < sum(found.values()):
            self.peak = phase, found

    def _made(self) -> int | None:
        if platform.has_cuda():
            return max(0, int(torch.cuda.max_memory_allocated()) - self._before)
        if self._watching is None:
            return None
        (watched, stack), self._watching = self._watching, None
        stack.close()
        return watched.peak

    def pop(self) -> dict[str, float]:
        """``memory/PHASE/TENANT_gib``, and ``memory/peak_gib`` of the largest phase: the largest
        over all ranks (collective). Starts again from nothing."""
        phases, self._phases = self._phases, {}
        if not phases:
            return {}
        names = [(phase, tenant) for phase, found in phases.items() for tenant in found]
        sums = [float(sum(found.values())) for found in phases.values()]
        numbers = all_max([max(sums), *(float(phases[phase][name]) for phase, name in names)])
        values = {
            f"memory/{p}/{t}_gib": n / 2**30 for (p, t), n in zip(names, numbers[1:], strict=True)
        }
        return {"memory/peak_gib": numbers[0] / 2**30} | values

    def describe_peak(self) -> str:
        """The largest phase since the start, on this rank: `1.2 GiB in train: student 0.4, ...`."""
        if self.peak is None:
            return "not measured yet"
        phase, found = self.peak
        parts = sorted(found.items(), key=lambda item: -item[1])
        told = ", ".join(f"{name} {_size(size)}" for name, size in parts if size)
        return f"{_size(sum(found.values()))} in {phase}: {told}"


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


class TensorPeak(TorchDispatchMode):
    """Bytes of the storages that operators made while it is entered: now, and at most.

    Storages made before do not count; what an operator allocates and frees inside itself is not
    seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}
        self._known: dict[int, StorageWeakRef] = {}  # the caller's, made before

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, torch.Tensor) and leaf.device.type != "meta":
                storage = leaf.untyped_storage()
                if storage._cdata not in self._live:
                    self._known[storage._cdata] = StorageWeakRef(storage)
        out = func(*args, **(kwargs or {}))
        self._live = {key: item for key, item in self._live.items() if not item[0].expired()}
        self._known = {key: ref for key, ref in self._known.items() if not ref.expired()}
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor) and leaf.device.type != "meta":
                storage = leaf.untyped_storage()
                if storage._cdata not in self._known:
                    self._live[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.peak = max(self.peak, self.now)
        return out

    @property
    def now(self) -> int:
        return sum(size for _, size in self._live.values())
