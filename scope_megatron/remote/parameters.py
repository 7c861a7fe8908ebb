"""The student's parameters on their way from the trainer's ranks to engines on other ranks.

The first transfer is made of full tensors, which vLLM's own loaders take; the plan of
``engine/parcels.py`` is then carried out on the same parameters and compared bit for bit, as
``engine/direct.py`` does it for engines on the trainer's ranks. From then on every rank sends the
rows that it holds straight to the engines' ranks. Where the plan is refused, full tensors go from
rank 0 to the first sampling rank, and from there to the others.

:class:`ParameterSender` and :class:`RemoteParameters` make the same calls in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from scope_megatron.convert.gather import global_parameters
from scope_megatron.engine.parcels import Parcel, ParcelPlan, TrainerShards, buffers
from scope_megatron.engine.placement import EngineLayout
from scope_megatron.engine.reshard import Write, held_parameters
from scope_megatron.engine.source import ModelParameters
from scope_megatron.parallel import platform
from scope_megatron.parallel.agree import any_rank, from_main
from scope_megatron.remote.bridge import Bridge
from scope_megatron.remote.collect import Inbox
from scope_megatron.remote.messages import Agreed, Packet, TakeParameters, WantedParcels
from scope_megatron.remote.post import SamplerPost

_ALIGNED = 16  # bytes: a tensor of any type may begin there
_M = TypeVar("_M", Agreed, WantedParcels)


class ParameterSender:
    """The trainer's end. Every method is collective over all its ranks."""

    def __init__(self, bridge: Bridge, inbox: Inbox | None) -> None:
        """``inbox``: rank 0's."""
        self._bridge, self._inbox = bridge, inbox
        self._wanted: WantedParcels | None = None  # once the plan is proven
        self._begun = False

    def send(self, source: ModelParameters) -> None:
        """``source`` to every engine, at the engines' next :class:`TakeParameters`."""
        shards = None if self._begun else _shards(source)
        self._tell(TakeParameters(shards))
        if self._wanted is not None:
            self._send_parcels(source, self._wanted)
            return
        self._send_full(source)
        if not self._begun:
            self._begun = True
            self._prove(source)

    def _prove(self, source: ModelParameters) -> None:
        if not self._objected():
            wanted: WantedParcels = from_main(lambda: self._heard(WantedParcels))
            self._send_parcels(source, wanted)
            if not self._objected():
                self._wanted = wanted
                return
            self._send_full(source)

    def _tell(self, message: Any) -> None:
        if self._inbox is not None:
            self._inbox.post.send(message)

    def _objected(self) -> bool:
        agreed: Agreed = from_main(lambda: self._heard(Agreed))
        return bool(agreed.flag)

    def _heard(self, kind: type[_M]) -> _M:
        """What the first sampling rank says next. Rank 0 alone calls this."""
        assert self._inbox is not None
        return self._inbox.next(kind)

    @torch.no_grad()
    def _send_parcels(self, source: ModelParameters, wanted: WantedParcels) -> None:
        """This rank's rows, to the engines that its replica serves."""
        topology, training = source.topology, self._bridge.place.training
        replicas = topology.dp_size * topology.cp_size
        replica = topology.cp_rank + topology.cp_size * topology.dp_rank
        engines = range(replica, wanted.engines, replicas)
        here = (topology.pp_rank, topology.tp_rank)
        mine = [p for p in wanted.parcels if p.source == here] if engines else []
        own = {name: tensor.detach() for name, tensor in global_parameters(source.model)}
        under_way: list[list[dist.Work]] = []
        for parcel, buffer in zip(mine, buffers(mine, platform.device()), strict=True):
            if len(under_way) == 2:
                _wait(under_way.pop(0))
            parcel.fill(buffer, own)
            ranks = [training + engine * wanted.ranks + parcel.taker for engine in engines]
            under_way.append([self._bridge.send(buffer, rank) for rank in ranks])
        for works in under_way:
            _wait(works)

    def _send_full(self, source: ModelParameters) -> None:
        """Full tensors in packets, from rank 0 to the first sampling rank."""
        first = self._bridge.place.training
        for tensors in _packets(source, source.bucket_bytes):
            if self._inbox is None:
                continue
            packet = Packet([(n, tuple(t.shape), t.dtype) for n, t in tensors], _size(tensors))
            self._inbox.post.send(packet, 0)
            if tensors:
                self._bridge.send(_packed(tensors, packet.size), first).wait()


class RemoteParameters:
    """The engines' end: the trainer's parameters as what ``DirectSend`` asks for."""

    def __init__(
        self,
        bridge: Bridge,
        post: SamplerPost,
        shards: TrainerShards,
        bucket_bytes: int,
        engine_tensor: int,
    ) -> None:
        self._bridge, self._post, self._shards = bridge, post, shards
        self._limit, self._engine_tensor = bucket_bytes, engine_tensor

    @property
    def is_main(self) -> bool:
        return bool(dist.get_rank() == 0)

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Full tensors, from packets that the first sampling rank passes on."""
        while True:
            packet: Packet = from_main(self._post.receive)
            if not packet.tensors:
                return
            flat = torch.empty(packet.size, dtype=torch.uint8, device=platform.device())
            if self.is_main:
                self._bridge.receive(flat, 0).wait()
            dist.broadcast(flat, src=0)
            offset = 0
            for name, shape, dtype in packet.tensors:
                size = math.prod(shape) * dtype.itemsize
                yield name, flat[offset : offset + size].view(dtype).view(shape)
                offset += _padded(size)

    def plan(self, layout: EngineLayout) -> ReceivePlan:
        """The parcels of this rank's engine. Raises PlanError; no collective."""
        whole = ParcelPlan(self._shards, layout, self._limit)
        engine, taker = divmod(dist.get_rank(), self._engine_tensor)
        engines = dist.get_world_size() // self._engine_tensor
        wanted = WantedParcels(
            [p.for_sender() for p in whole.parcels], engines, self._engine_tensor
        )
        announce = (lambda: self._post.send(wanted)) if self.is_main else None
        parcels = [p for p in whole.parcels if p.taker == taker]
        ranks = [self._shards.rank(engine, p.source) for p in parcels]
        return ReceivePlan(self._bridge, parcels, ranks, whole.rows[taker], announce)

    def any_rank(self, flag: bool) -> bool:
        """Among the sampling ranks; the trainer's hear of it."""
        found = any_rank(flag)
        if self.is_main:
            self._post.send(Agreed(found))
        return found


class ReceivePlan:
    """The parcels that this rank takes, in their order, each from a rank of the job."""

    def __init__(
        self,
        bridge: Bridge,
        parcels: list[Parcel],
        ranks: list[int],
        rows: dict[str, int],
        announce: Callable[[], None] | None,
    ) -> None:
        self.rows = rows
        self.received = 0  # bytes of the last run
        self._bridge, self._parcels, self._ranks = bridge, parcels, ranks
        self._announce = announce  # before the first run: the senders do not know the plan yet

    @torch.no_grad()
    def run(self, source: RemoteParameters, write: Write) -> None:
        """See :class:`TransferPlan`."""
        if self._announce is not None:
            self._announce()
            self._announce = None
        self.received = 0
        before: tuple[Parcel, Tensor, dist.Work] | None = None
        taken = buffers(self._parcels, platform.device())
        for parcel, rank, buffer in zip(self._parcels, self._ranks, taken, strict=True):
            work = self._bridge.receive(buffer, rank)
            if before is not None:
                _land(*before, write)
            before = parcel, buffer, work
            self.received += buffer.nbytes
        if before is not None:
            _land(*before, write)


def _land(parcel: Parcel, buffer: Tensor, work: dist.Work, write: Write) -> None:
    work.wait()
    parcel.land(buffer, write)


def _wait(works: list[dist.Work]) -> None:
    for work in works:
        work.wait()


def _shards(source: ModelParameters) -> TrainerShards:
    """What the trainer's ranks hold (collective over the pipeline)."""
    topology = source.topology
    replicas = topology.dp_size * topology.cp_size
    return TrainerShards(tuple(held_parameters(source)), source.hf, topology.tp_size, replicas)


def _packets(source: ModelParameters, limit: int) -> Iterator[list[tuple[str, Tensor]]]:
    """The full tensors in groups of at most ``limit`` bytes, or one that is larger; last an empty
    group (collective)."""
    group: list[tuple[str, Tensor]] = []
    for name, tensor in source:
        if group and _size(group) + _padded(tensor.nbytes) > limit:
            yield group
            group = []
        group.append((name, tensor))
    if group:
        yield group
    yield []


def _size(tensors: list[tuple[str, Tensor]]) -> int:
    return sum(_padded(tensor.nbytes) for _, tensor in tensors)


def _padded(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED


def _packed(tensors: list[tuple[str, Tensor]], size: int) -> Tensor:
    flat = torch.empty(size, dtype=torch.uint8, device=tensors[0][1].device)
    offset = 0
    for _, tensor in tensors:
        flat[offset : offset + tensor.nbytes].view(tensor.dtype).view(tensor.shape).copy_(tensor)
        offset += _padded(tensor.nbytes)
    return flat
