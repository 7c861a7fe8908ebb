"""Parameters sent straight into the memory of vLLM's, once that is proven to be right.

The first ones go through vLLM's own loaders. The plan is then carried out on the same parameters
and must agree with them bit for bit in every parameter; else vLLM's loaders are used ever after.
vLLM's CPU build packs the weights of linear layers and keeps no plain copy: such a layer is put
together aside and packed again, and compared by its output for a random input.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from scope_megatron.engine.placement import EngineLayout, PlanError
from scope_megatron.engine.reshard import Write

_log = logging.getLogger(__name__)


class TransferPlan(Protocol):
    """What every piece of the engine's parameters is made of, and how it gets here."""

    rows: dict[str, int]  # of each engine parameter; those that follow are padding

    def run(self, source: Any, write: Write) -> None:
        """Call ``write(parameter, first row, first column, values)`` for every piece (collective).

        The values are overwritten by later ones: they are to be copied.
        """
        ...


@runtime_checkable
class ShardSource(Protocol):
    """The trainer's parameters, whether its ranks hold the engines or others do."""

    @property
    def is_main(self) -> bool:
        """Whether this rank speaks for the engines."""
        ...

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Hugging Face names and full tensors, for vLLM's loaders; a collective."""
        ...

    def plan(self, layout: EngineLayout) -> TransferPlan:
        """The plan for an engine laid out so. Raises :class:`PlanError`, and then only after the
        last collective."""
        ...

    def any_rank(self, flag: bool) -> bool:
        """Whether ``flag`` is set on any rank that takes part in the transfer (collective)."""
        ...


Reload = Callable[[ShardSource], None]


class DirectSend:
    """The plan of one engine: unproven, in use, or given up."""

    def __init__(self, tensor: int) -> None:
        self._tensor = tensor
        self.plan: TransferPlan | None = None
        self.refused = ""  # why the plan is not used

    def send(self, engine: torch.nn.Module, source: ShardSource, reload: Reload) -> None:
        """``source`` into vLLM's model (collective); ``reload`` does it by vLLM's loaders."""
        if self.plan is not None:
            parameters = EngineParameters(engine)
            parameters.clear_padding(self.plan.rows)
            self.plan.run(source, parameters.write)
            parameters.finish()
            return
        reload(source)
        if not self.refused:
            self._prove(engine, source, reload)

    def _prove(self, engine: torch.nn.Module, source: ShardSource, reload: Reload) -> None:
        plan: TransferPlan | None = None
        reason = ""
        try:
            parameters = EngineParameters(engine, compare=True)
            plan = source.plan(parameters.layout(self._tensor))
        except (PlanError, ValueError) as error:
            reason = str(error)
        if not source.any_rank(plan is None):
            assert plan is not None
            plan.run(source, parameters.write)
            reason = parameters.finish()
            if not source.any_rank(bool(reason)):
                self.plan = plan
                return
            reload(source)  # a packed layer may have been put together wrongly
        self.refused = reason or "another rank's parameters differ"
        if source.is_main or reason:
            _log.warning(
                "parameters reach the engine through vLLM's loaders, more slowly: %s", self.refused
            )


class EngineParameters:
    """vLLM's parameters as they are written piece by piece; with ``compare`` as they are checked.

    A packed layer is assembled in a scratch buffer and packed when its last piece has come. One
    buffer serves one layer after the other.
    """

    def __init__(self, engine: torch.nn.Module, compare: bool = False) -> None:
        self._compare = compare
        self._plain = {name: p.detach() for name, p in engine.named_parameters()}
        self._packed: dict[str, torch.nn.Module] = {}
        self._copied: list[torch.nn.Module] = []  # packed from a weight that is kept as well
        for name, module in engine.named_modules():
            weight = getattr(module, "weight", None)
            if not hasattr(module, "cpu_linear") or not isinstance(weight, Tensor):
                continue
            if weight.numel() == 0:
                if not hasattr(module, "input_size_per_partition"):  # a router of experts
                    raise PlanError(f"{name} is packed and does not say what shape it had")
                self._packed[f"{name}.weight"] = module
            elif module is getattr(engine, "lm_head", None) or name.endswith("embed_tokens"):
                self._copied.append(module)  # where embeddings are tied the one or the other
        self._fused = dict(getattr(engine, "packed_modules_mapping", {}))
        self._missing: dict[str, int] = {}
        self._open: dict[str, Tensor] = {}
        self._scratch: Tensor | None = None
        self._wrong = ""
        modules = {**self._packed, **{f"output layer {i}": m for i, m in enumerate(self._copied)}}
        self._before = {n: (m, _probe(m)) for n, m in modules.items()} if compare else {}

    def layout(self, size: int) -> EngineLayout:
        shapes = {name: tuple(tensor.shape) for name, tensor in self._plain.items()}
        shapes |= {name: _packed_shape(module) for name, module in self._packed.items()}
        return EngineLayout(size, shapes, self._fused)

    def clear_padding(self, rows: dict[str, int]) -> None:
        """Zeros after the given number of rows: an engine that slept has lost them too."""
        for name, tensor in self._plain.items():
            if name not in self._packed:
                tensor[rows[name] :].zero_()

    def write(self, name: str, row: int, column: int, values: Tensor) -> None:
        """Put ``values`` at (row, column) of a parameter, or compare them with what is there."""
        whole = self._assembled(name) if name in self._packed else self._plain[name]
        place = whole.narrow(0, row, values.shape[0])
        if values.dim() > 1:
            place = place.narrow(1, column, values.shape[1])
        if name not in self._packed and self._compare:
            if not torch.equal(place, values.to(place.dtype)):
                self._wrong = self._wrong or f"{name} differs"
            return
        place.copy_(values)
        if name in self._packed:
            self._missing[name] -= values.numel()
            if not self._missing[name]:
                _pack(self._packed[name], self._open.pop(name))

    def finish(self) -> str:
        """After the last piece; with ``compare`` the first difference found, or nothing."""
        for module in self._copied:
            module.quant_method.process_weights_after_loading(module)
        for name, (module, before) in self._before.items():
            if not torch.equal(before, _probe(module)):
                self._wrong = self._wrong or f"{name} differs"
        return self._wrong

    def _assembled(self, name: str) -> Tensor:
        """The plain weight of a packed layer, to be filled."""
        if name not in self._open:
            module = self._packed[name]
            shape = _packed_shape(module)
            self._missing[name] = math.prod(shape)
            if self._open:  # layers whose pieces alternate: a buffer each
                self._open[name] = torch.empty(shape, dtype=module.weight.dtype)
            else:
                self._open[name] = self._reused(module.weight.dtype, shape)
        return self._open[name]

    def _reused(self, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        if self._scratch is None or self._scratch.dtype != dtype:
            same = [m for m in self._packed.values() if m.weight.dtype == dtype]
            self._scratch = torch.empty(max(math.prod(_packed_shape(m)) for m in same), dtype=dtype)
        return self._scratch[: math.prod(shape)].view(shape)


def _packed_shape(module: torch.nn.Module) -> tuple[int, int]:
    return module.output_size_per_partition, module.input_size_per_partition


def _pack(module: torch.nn.Module, weight: Tensor) -> None:
    module.cpu_linear = None  # frees the old packed weights first
    module.weight = torch.nn.Parameter(weight, requires_grad=False)
    module.quant_method.process_weights_after_loading(module)


@torch.no_grad()
def _probe(module: torch.nn.Module) -> Tensor:
    """The layer's output for a fixed random input, without its bias."""
    weight = module.weight
    width = weight.shape[1] if weight.numel() else module.input_size_per_partition
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(2, width, generator=generator).to(weight.dtype)
    return module.quant_method.apply(module, inputs, None)
