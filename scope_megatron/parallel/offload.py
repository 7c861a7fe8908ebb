"""The optimizer's place between updates: on the device, or in host memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.optimizer import FP32Optimizer

from scope_megatron.parallel.chunks import ReplicatedModel


class OptimizerPlace:
    """Brings the optimizer to the device for an update, and frees the device after it.

    What leaves: Adam's states, the float32 copies of half-precision parameters, and the gradients'
    buffers (nothing is kept of those: every update starts from zeros). With ``offload`` false all
    stay where they are. On a machine without GPUs the same calls are made and nothing moves.
    """

    def __init__(self, model: ReplicatedModel, optimizer: MegatronOptimizer, offload: bool) -> None:
        self._model, self._optimizer, self._offload = model, optimizer, offload
        self._away = False

    def leave(self) -> None:
        """Free the device."""
        if not self._offload or self._away:
            return
        self._away = True
        for part in _chain(self._optimizer):
            if isinstance(part, FP32Optimizer):
                # its parameters are the model's own, which goes on computing
                _move_states(part, torch.device("cpu"))
            else:
                part.offload_to_cpu()
        self._model.offload_grad_buffers()

    def enter(self) -> None:
        """Be ready for an update, a save or a load."""
        if not self._away:
            return
        self._away = False
        self._model.restore_grad_buffers()
        for part in _chain(self._optimizer):
            if isinstance(part, FP32Optimizer):
                _move_states(part, None)
            else:
                part.restore_from_cpu()

    @contextmanager
    def resident(self) -> Iterator[None]:
        """On the device inside; away after it, unless an error ends the run."""
        self.enter()
        yield
        self.leave()


def _chain(optimizer: MegatronOptimizer) -> list[MegatronOptimizer]:
    return getattr(optimizer, "chained_optimizers", [optimizer])


def _move_states(optimizer: FP32Optimizer, device: torch.device | None) -> None:
    """To ``device``; None: each to its parameter's."""
    for parameter, state in optimizer.optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and value.dim():  # a count of steps stays
                state[name] = value.to(parameter.device if device is None else device)
