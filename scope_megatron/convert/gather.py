"""Tensor-, expert- and pipeline-parallel shards -> full Hugging Face tensors, in buckets."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from scope_megatron.convert.mapping import Mapping, expert_of, is_expert, with_expert
from scope_megatron.parallel.agree import from_all
from scope_megatron.parallel.chunks import model_chunks
from scope_megatron.parallel.topology import Topology

# torch 2.13 renamed it and warns of the old name.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
Item = TypeVar("Item")


@dataclass(frozen=True)
class _Shard:
    """One parameter as a rank of its pipeline stage holds it."""

    name: str  # Megatron's, with layer and expert counted over the whole model
    shape: tuple[int, ...]
    dtype: torch.dtype
    stage: int

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def kind(self) -> tuple[object, ...]:
        """Properties that all shards of a bucket share."""
        return self.stage, self.dtype, is_expert(self.name)


def global_parameters(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Parameters of this rank, layers and experts numbered over the whole model (wrappers are
    opened)."""
    for chunk in model_chunks(model):
        for name, parameter in chunk.named_parameters():
            if name.startswith("decoder.layers."):
                _, _, local, rest = name.split(".", 3)
                layer = chunk.decoder.layers[int(local)]
                name = f"decoder.layers.{layer.layer_number - 1}.{rest}"
                expert = expert_of(name)
                if expert is not None:
                    name = with_expert(name, layer.mlp.local_expert_indices[expert])
            yield name, parameter


def iter_full_tensors(
    model: torch.nn.Module, hf: dict[str, Any], topology: Topology, bucket_bytes: int
) -> Iterator[tuple[str, Tensor]]:
    """Every (Hugging Face name, full tensor) of the model, in the same order on every rank.

    A collective over the tensor x pipeline ranks of one copy of the model, and over the ranks that
    share its experts: all of them must exhaust the iterator. Per bucket of at most
    ``bucket_bytes`` of one stage: one all-gather over the tensor (or expert) ranks, one broadcast
    over the pipeline. One parameter, or the like of it from every expert rank, may exceed that.

    Each bucket is a fresh buffer, so a tensor stays valid for as long as it is kept. One that is
    small beside its bucket is a copy, so that keeping it does not keep the bucket. Two buckets and
    the parameter being taken apart may be held at a time, beyond what the caller keeps; a larger
    parameter is a bucket of its own. Without tensor and pipeline parallelism nothing is copied
    that need not be: a tensor may then be a view of the live parameter, which the next optimizer
    step changes. Tied embeddings are yielded once, as the embedding.
    """
    mapping = Mapping(hf)
    own = {name: parameter.detach() for name, parameter in global_parameters(model)}
    for bucket in _buckets(_all_shards(own, mapping, topology), topology, bucket_bytes):
        for shard, gathered in zip(bucket, _gather(bucket, own, topology), strict=True):
            for parameter, parts in _parameters(shard, gathered, mapping, topology):
                rule, names = mapping.find(parameter)
                tensors = rule.to_hf(parts, mapping.sizes)
                for name, tensor in zip(names, tensors, strict=True):
                    yield name, _detached(tensor)
                    del tensor
                del parts, tensors
        del gathered  # the bucket's memory, before the next one is gathered


def _parameters(
    shard: _Shard, gathered: Tensor, mapping: Mapping, topology: Topology
) -> Iterator[tuple[str, Tensor]]:
    """(Megatron name, [shards, *shape]): with expert parallelism every rank gave another expert."""
    expert = expert_of(shard.name)
    if expert is None or topology.ep_size == 1:
        yield shard.name, gathered
        return
    held = mapping.sizes.experts // topology.ep_size
    for rank in range(topology.ep_size):
        name = with_expert(shard.name, rank * held + expert % held)
        yield name, gathered[rank : rank + 1]


def _detached(tensor: Tensor) -> Tensor:
    """A copy where the tensor is less than half of the memory that keeping it would hold."""
    small = 2 * tensor.nbytes < tensor.untyped_storage().nbytes()
    return tensor.clone() if small else tensor


def of_all_stages(mine: list[Item], topology: Topology) -> list[Item]:
    """The stages' lists, one after the other, on every rank (a collective over the pipeline)."""
    if topology.pp_size == 1:
        return mine
    return [item for stage in from_all(mine, topology.pp_group) for item in stage]


def _all_shards(own: dict[str, Tensor], mapping: Mapping, topology: Topology) -> list[_Shard]:
    """Shards held by every pipeline stage, in the order of the stages."""
    mine = [
        _Shard(name, tuple(tensor.shape), tensor.dtype, topology.pp_rank)
        for name, tensor in own.items()
        if not mapping.find(name)[0].duplicate
    ]
    return of_all_stages(mine, topology)


def _buckets(shards: list[_Shard], topology: Topology, bucket_bytes: int) -> Iterator[list[_Shard]]:
    """Consecutive shards of one kind that gather to at most ``bucket_bytes``."""
    bucket: list[_Shard] = []
    filled = 0
    for shard in shards:
        _, ranks = topology.shard_group(is_expert(shard.name))
        size = shard.numel * shard.dtype.itemsize * ranks
        same = bucket and bucket[0].kind == shard.kind
        if bucket and (not same or filled + size > bucket_bytes):
            yield bucket
            bucket, filled = [], 0
        bucket.append(shard)
        filled += size
    if bucket:
        yield bucket


def _gather(bucket: list[_Shard], own: dict[str, Tensor], topology: Topology) -> Iterator[Tensor]:
    """Per shard of the bucket, those of all ranks of its group stacked: [ranks, *shard shape]."""
    group, ranks = topology.shard_group(is_expert(bucket[0].name))
    if ranks == 1 and topology.pp_size == 1:
        yield from (own[shard.name][None] for shard in bucket)
        return
    stage, dtype = bucket[0].stage, bucket[0].dtype
    numel = sum(shard.numel for shard in bucket)
    if topology.pp_rank == stage:
        parts = [own[shard.name].reshape(-1) for shard in bucket]
        local = torch.cat(parts) if len(parts) > 1 else parts[0]  # one is not copied
        gathered = local[None]
        if ranks > 1:
            gathered = local.new_empty(ranks, numel)
            _all_gather(gathered.view(-1), local, group=group)
        del local, parts
    else:
        device = next(iter(own.values())).device
        gathered = torch.empty(ranks, numel, dtype=dtype, device=device)
    if topology.pp_size > 1:
        source = dist.get_global_rank(topology.pp_group, stage)
        dist.broadcast(gathered, src=source, group=topology.pp_group)
    offset = 0
    for shard in bucket:
        yield gathered[:, offset : offset + shard.numel].unflatten(1, shard.shape)
        offset += shard.numel
