"""Process groups and ranks, as one frozen object that is handed down."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel
from torch.distributed import ProcessGroup

from scope_megatron.parallel.meeting import meet


@dataclass(frozen=True)
class Topology:
    """Ranks and process groups of this process. Order: tensor fastest, then context,
    data, pipeline."""

    rank: int
    world_size: int
    tp_rank: int
    tp_size: int
    pp_rank: int
    pp_size: int
    dp_rank: int
    dp_size: int
    sequence_parallel: bool
    tp_group: ProcessGroup
    pp_group: ProcessGroup
    dp_group: ProcessGroup
    mp_group: ProcessGroup  # the tensor x context x pipeline ranks of one replica
    ep_rank: int = 0
    ep_size: int = 1
    ep_group: ProcessGroup | None = None  # neighbours among a stage's tensor x context x data ranks
    cp_rank: int = 0
    cp_size: int = 1
    cp_group: ProcessGroup | None = None  # ranks that share the tokens of a pack
    timeout_s: float = 1800.0  # of a collective
    own_groups: dict[str, Any] | None = None  # megatron-core's, where they are not in place always

    @property
    def pack_multiple(self) -> int:
        """The tokens of a pack are a multiple of this: context parallelism cuts them into two
        pieces a rank, sequence parallelism cuts what a rank has."""
        pieces = 2 * self.cp_size if self.cp_size > 1 else 1
        return pieces * (self.tp_size if self.sequence_parallel else 1)

    @property
    def is_first_stage(self) -> bool:
        return self.pp_rank == 0

    @property
    def is_last_stage(self) -> bool:
        return self.pp_rank == self.pp_size - 1

    @property
    def last_stage_rank(self) -> int:
        """Global rank of this pipeline's last stage (same tensor and data rank)."""
        return int(dist.get_global_rank(self.pp_group, self.pp_size - 1))

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def is_replica_first(self) -> bool:
        """Whether this is the first of a replica's ranks, the one that writes, or sends, what all
        of them have."""
        return self.tp_rank == self.cp_rank == self.pp_rank == 0

    def holds_whole_experts(self, is_expert: bool) -> bool:
        """Whether such a parameter is not cut: expert parallelism deals out whole experts."""
        return is_expert and self.ep_size > 1

    def shard_rank(self, is_expert: bool) -> int:
        """Index of the tensor-parallel shard of such a parameter that this rank holds."""
        return 0 if self.holds_whole_experts(is_expert) else self.tp_rank

    def shard_group(self, is_expert: bool) -> tuple[ProcessGroup | None, int]:
        """The ranks, and their number, over which a stage's parameters of this kind are spread."""
        if self.holds_whole_experts(is_expert):
            return self.ep_group, self.ep_size
        return self.tp_group, self.tp_size


def initialize_distributed(timeout_s: float = 1800.0, sampling: int = 0) -> None:
    """Join the job described by RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT; alone without them.

    ``timeout_s`` is that of the default group's collectives, and of the meeting. sampling: so many
    ranks, the last ones, only sample and are a world of their own.
    """
    if dist.is_initialized():
        return
    os.environ.setdefault("RANK", "0")
    os.environ.setdefault("LOCAL_RANK", "0")
    os.environ.setdefault("WORLD_SIZE", "1")
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    if os.environ["WORLD_SIZE"] == "1":
        os.environ.setdefault("MASTER_PORT", str(_free_port()))
    meet(timeout_s, sampling)


def _free_port() -> int:
    import socket

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def create_topology(
    tensor: int = 1,
    pipeline: int = 1,
    sequence: bool = False,
    seed: int = 1234,
    *,
    expert: int = 1,
    context: int = 1,
    timeout_s: float = 1800.0,
) -> Topology:
    """Build Megatron's process groups over the world (collective over all ranks).

    With ``expert`` > 1 that many neighbouring tensor x context x data ranks of a stage share the
    experts of its layers, each holding whole ones; otherwise tensor parallelism cuts them like
    other weights. ``context`` ranks share the tokens of each pack.
    ``timeout_s`` is that of a collective in these groups, rounded up to minutes.
    Raises ValueError when the world does not divide into tensor x pipeline, or a stage's ranks
    not into groups of ``expert``.
    """
    topology = layout_ranks(
        tensor, pipeline, sequence, expert=expert, context=context, timeout_s=timeout_s
    )
    tensor_parallel.model_parallel_cuda_manual_seed(seed)
    return topology


def layout_ranks(
    tensor: int, pipeline: int, sequence: bool, *, expert: int, context: int, timeout_s: float
) -> Topology:
    """See :func:`create_topology`; no generator is seeded."""
    world = dist.get_world_size()
    _require_divisible(world, tensor, context, pipeline, expert)
    if not parallel_state.model_parallel_is_initialized():
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=tensor,
            pipeline_model_parallel_size=pipeline,
            context_parallel_size=context,
            expert_model_parallel_size=expert,
            expert_tensor_parallel_size=tensor if expert == 1 else 1,
            distributed_timeout_minutes=math.ceil(timeout_s / 60),
            create_gloo_process_groups=True,  # the optimizer and its checkpoint ask for them
        )
    return Topology(
        rank=dist.get_rank(),
        world_size=world,
        tp_rank=parallel_state.get_tensor_model_parallel_rank(),
        tp_size=tensor,
        pp_rank=parallel_state.get_pipeline_model_parallel_rank(),
        pp_size=pipeline,
        dp_rank=parallel_state.get_data_parallel_rank(),
        dp_size=parallel_state.get_data_parallel_world_size(),
        sequence_parallel=sequence,
        tp_group=parallel_state.get_tensor_model_parallel_group(),
        pp_group=parallel_state.get_pipeline_model_parallel_group(),
        dp_group=parallel_state.get_data_parallel_group(),
        mp_group=_replica_group(tensor, context, pipeline, timeout_s),
        ep_rank=parallel_state.get_expert_model_parallel_rank(),
        ep_size=expert,
        ep_group=parallel_state.get_expert_model_parallel_group(),
        cp_rank=parallel_state.get_context_parallel_rank(),
        cp_size=context,
        cp_group=parallel_state.get_context_parallel_group(),
        timeout_s=timeout_s,
    )


def _require_divisible(world: int, tensor: int, context: int, pipeline: int, expert: int) -> None:
    replica = tensor * context * pipeline
    if world % replica:
        between = f" x parallel.context={context}" if context > 1 else ""
        raise ValueError(
            f"parallel.tensor={tensor}{between} x parallel.pipeline={pipeline} does not divide the "
            f"{world} started processes; start a multiple of {replica}"
        )
    if world // pipeline % expert:
        raise ValueError(
            f"parallel.expert={expert} does not divide the {world // pipeline} processes of a "
            "pipeline stage; set it to a divisor of parallel.tensor x parallel.data"
        )


def _replica_group(tensor: int, context: int, pipeline: int, timeout_s: float) -> ProcessGroup:
    """This rank's replica, in ascending order; megatron-core's group has one context rank of it."""
    if context == 1:
        return parallel_state.get_model_parallel_group()
    world = dist.get_world_size()
    stage, each = world // pipeline, tensor * context
    for first in range(0, stage, each):
        ranks = [s * stage + first + r for s in range(pipeline) for r in range(each)]
        group = dist.new_group(ranks, timeout=timedelta(seconds=timeout_s))
        if dist.get_rank() in ranks:
            mine = group
    return mine


def destroy() -> None:
    """Leave the process groups (idempotent)."""
    if parallel_state.model_parallel_is_initialized():
        parallel_state.destroy_model_parallel()
        tensor_parallel.random._CUDA_RNG_STATE_TRACKER_INITIALIZED = False
    if dist.is_initialized():
        dist.destroy_process_group()


def broadcast_from_last_stage(tensor: torch.Tensor, topology: Topology) -> torch.Tensor:
    """Give every pipeline stage what only the last one computed (in place, and returned)."""
    if topology.pp_size > 1:
        dist.broadcast(tensor, src=topology.last_stage_rank, group=topology.pp_group)
    return tensor
