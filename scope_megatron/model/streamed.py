"""A frozen model whose parameters come to the device a layer at a time, and leave after use."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from torch import Tensor
from torch.nn import Parameter

ALIGNMENT = 256  # bytes: where parameters begin in a buffer
Shapes = dict[Parameter, torch.Size]


def hollow(model: GPTModel, device: torch.device) -> Shapes:
    """Put empty parameters on ``device`` in the place of a model's on the meta device.

    Returns what their shapes were.
    """
    shapes: Shapes = {}
    made: dict[Parameter, Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            if parameter not in made:
                empty = torch.empty(0, dtype=parameter.dtype, device=device)
                made[parameter] = Parameter(empty, requires_grad=False)
                made[parameter].__dict__.update(parameter.__dict__)
                shapes[made[parameter]] = parameter.shape
            module._parameters[name] = made[parameter]
    return shapes


class _Unit:
    """Parameters that come and go together, side by side in one buffer."""

    def __init__(self, parameters: list[Parameter], shapes: Shapes) -> None:
        self._places: list[tuple[Parameter, torch.Size, int, int]] = []
        sizes = [math.prod(shapes[p]) * p.dtype.itemsize for p in parameters]
        starts = accumulate((_aligned(size) for size in sizes), initial=0)
        for parameter, size, start in zip(parameters, sizes, starts, strict=False):
            self._places.append((parameter, shapes[parameter], start, size))
        self.nbytes = sum(_aligned(size) for size in sizes)

    def views(self, buffer: Tensor) -> Iterator[tuple[Parameter, Tensor]]:
        """Each parameter's part of a buffer [nbytes or more] of bytes."""
        for parameter, shape, start, size in self._places:
            yield parameter, buffer[start : start + size].view(parameter.dtype).view(shape)

    def put(self, buffer: Tensor) -> None:
        """The parameters are what is in the buffer."""
        for parameter, view in self.views(buffer):
            parameter.data = view

    def drop(self) -> None:
        """The parameters hold nothing."""
        for parameter, *_ in self._places:
            parameter.data = parameter.data.new_empty(0)


class StreamedParameters:
    """The place of a hollow model's parameters (see :func:`hollow`).

    Between :meth:`enter` and :meth:`leave` the model can be called. What the head needs (final norm
    and output weight) is on the device then; embedding and layers come as the forward pass reaches
    them. ``read`` gives a parameter's values in host memory. On a CPU it is asked at every use, on
    CUDA once: pinned copies are kept, and the next layer is copied while one computes.
    """

    def __init__(
        self, model: GPTModel, shapes: Shapes, read: Callable[[Parameter], Tensor]
    ) -> None:
        self._read = read
        modules = list(model.decoder.layers)
        tied = (
            model.pre_process and model.post_process and model.share_embeddings_and_output_weights
        )
        if model.pre_process and not tied:
            modules.insert(0, model.embedding)
        passing = {p for module in modules for p in module.parameters()}
        self._units = [_Unit(list(module.parameters()), shapes) for module in modules]
        self._rest = _Unit([p for p in model.parameters() if p not in passing], shapes)
        self._device = next(iter(shapes)).device
        cuda = self._device.type == "cuda"
        self._pinned = {u: self._read_pinned(u) for u in self._all()} if cuda else {}
        self._head: Tensor | None = None  # the buffer of what stays between enter and leave
        self._slots = _CudaSlots(self._units, self._pinned, self._device) if cuda else None
        self._slot: Tensor | None = None  # on a CPU the buffer of one unit after the other
        for index, module in enumerate(modules):
            module.register_forward_pre_hook(self._before(index))
            module.register_forward_hook(self._after(index))

    def enter(self) -> None:
        """Be ready for forward passes (at once if it is already)."""
        if self._slots is None and self._slot is None:  # also after rest, which keeps the head
            self._slot = torch.empty(max(u.nbytes for u in self._units), dtype=torch.uint8)
        if self._head is not None:
            return
        self._head = torch.empty(self._rest.nbytes, dtype=torch.uint8, device=self._device)
        if self._slots is None:
            self._fill(self._rest, self._head)
        else:
            self._head.copy_(self._pinned[self._rest], non_blocking=True)
            self._slots.enter()
        self._rest.put(self._head)

    def rest(self) -> None:
        """No forward pass for a while: only what the head needs stays on the device."""
        self._slot = None
        if self._slots is not None:
            self._slots.leave()

    def leave(self) -> None:
        """Free the device."""
        self.rest()
        self._rest.drop()
        self._head = None

    def buffers(self) -> list[Tensor]:
        """All that is on the device."""
        held = [self._head, self._slot, *(self._slots.buffers if self._slots else [])]
        return [buffer for buffer in held if buffer is not None]

    def _all(self) -> list[_Unit]:
        return [*self._units, self._rest]

    def _fill(self, unit: _Unit, buffer: Tensor) -> None:
        for parameter, view in unit.views(buffer):
            view.copy_(self._read(parameter))

    def _read_pinned(self, unit: _Unit) -> Tensor:
        buffer = torch.empty(unit.nbytes, dtype=torch.uint8, pin_memory=True)
        self._fill(unit, buffer)
        return buffer

    def _before(self, index: int) -> Callable[..., None]:
        def bring(*_: Any) -> None:
            unit = self._units[index]
            if self._slots is not None:
                unit.put(self._slots.take(index))
                return
            assert self._slot is not None, "enter comes before a forward pass"
            self._fill(unit, self._slot)
            unit.put(self._slot)

        return bring

    def _after(self, index: int) -> Callable[..., None]:
        def drop(*_: Any) -> None:
            self._units[index].drop()
            if self._slots is not None:
                self._slots.used(index)

        return drop


class _CudaSlots:
    """Two buffers on a GPU: while a unit computes in one, the next is copied to the other."""

    def __init__(
        self, units: list[_Unit], pinned: dict[_Unit, Tensor], device: torch.device
    ) -> None:
        self._sources = [pinned[unit] for unit in units]
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self.buffers: list[Tensor] = []
        self._holds: list[int | None] = [None, None]  # unit of each buffer
        self._arrived = [torch.cuda.Event(), torch.cuda.Event()]
        self._free = [torch.cuda.Event(), torch.cuda.Event()]

    def enter(self) -> None:
        size = max(source.numel() for source in self._sources)
        self.buffers = [torch.empty(size, dtype=torch.uint8, device=self._device) for _ in range(2)]
        self._holds = [None, None]
        for event in self._free:  # the memory's users before are ahead on this stream
            event.record()

    def leave(self) -> None:
        if self.buffers:  # the allocator gives the memory to this stream's next user
            torch.cuda.current_stream(self._device).wait_stream(self._stream)
        self.buffers = []

    def take(self, index: int) -> Tensor:
        """The buffer that unit ``index`` is in; the copy of the unit after it is begun."""
        if not self.buffers:
            self.enter()
        slot = self._holds.index(index) if index in self._holds else self._copy(index, 0)
        torch.cuda.current_stream(self._device).wait_event(self._arrived[slot])
        following = (index + 1) % len(self._sources)
        if following not in self._holds:
            self._copy(following, 1 - slot)
        return self.buffers[slot]

    def used(self, index: int) -> None:
        """The kernels that read unit ``index`` are queued."""
        self._free[self._holds.index(index)].record()

    def _copy(self, index: int, slot: int) -> int:
        source = self._sources[index]
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(self._free[slot])
            self.buffers[slot][: source.numel()].copy_(source, non_blocking=True)
            self._arrived[slot].record(self._stream)
        self._holds[slot] = index
        return slot


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
