"""Save and resume: student, optimizer, schedule, random numbers, and the position in the data.

A checkpoint is in megatron-core's distributed format (loadable at another TP, PP or DP size).
`folder.py` says how a run's checkpoints lie on disk, `saver.py` how one is written.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core import dist_checkpointing, tensor_parallel
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from scope_megatron.checkpoint.folder import newest_whole
from scope_megatron.checkpoint.manifest import find_damage
from scope_megatron.parallel.agree import from_main
from scope_megatron.parallel.chunks import model_chunks
from scope_megatron.parallel.optimizer import after_loading, before_loading, translate
from scope_megatron.parallel.topology import Topology

PROGRESS_FORMAT = 1
SHARDING = {
    "distrib_optim_sharding_type": "fully_reshardable",
    # gathered in host memory by one rank of each group of replicas: otherwise every replica makes
    # the whole state, and passes it through the device while the engine fills that
    "distrib_optim_fully_reshardable_mem_efficient": True,
    "chained_optim_avoid_prefix": True,  # experts' states under their names alone
}


@dataclass
class TrainingState:
    """Contents of a checkpoint. ``model`` is the unwrapped student of this rank."""

    model: torch.nn.Module
    optimizer: MegatronOptimizer
    scheduler: OptimizerParamScheduler
    topology: Topology


def find_valid(output_dir: Path) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint, and a line on all that was stepped over (collective).

    Raises ValueError when there are checkpoints and none of them is whole.
    """
    return from_main(lambda: newest_whole(output_dir))


def require_valid(directory: Path) -> None:
    """Raise ValueError when the checkpoint is damaged (collective)."""
    damage = from_main(lambda: find_damage(directory))
    if damage is not None:
        raise ValueError(f"resume: {directory} is damaged: {damage}; give another checkpoint")


def state_to_save(state: TrainingState, step: int, progress: dict[str, Any]) -> dict[str, Any]:
    """Sharded state dict of a whole checkpoint, in megatron-core's format (collective)."""
    sharded = _sharded_state(state, is_loading=False)
    sharded["progress"] = {"format": PROGRESS_FORMAT, "step": step, **progress}
    sharded["scheduler"] = state.scheduler.state_dict()
    return sharded


def load_checkpoint(state: TrainingState, directory: Path) -> dict[str, Any]:
    """Fill ``state`` from a checkpoint (collective); returns its ``progress``.

    Random-number states come back when the layout is the same; at another one every rank keeps
    its fresh ones (rollouts do not depend on them: they are keyed by seed, step and sample).
    """
    common = dist_checkpointing.load_common_state_dict(str(directory))
    progress: dict[str, Any] = common["progress"]
    if progress["format"] > PROGRESS_FORMAT:
        raise ValueError(f"resume: {directory} was written by a newer version of scope_megatron")
    before_loading(state.optimizer)
    same_layout = progress["layout"] == _layout(state.topology)
    sharded = _sharded_state(state, is_loading=True, with_rng=same_layout)
    loaded = dist_checkpointing.load(sharded, str(directory))
    chunks = model_chunks(state.model)
    for number, chunk in enumerate(chunks):
        its = loaded["model"] if len(chunks) == 1 else loaded["model"][str(number)]
        chunk.load_state_dict(its, strict=False)
    translate(state.optimizer, loaded["optimizer"])
    state.optimizer.load_state_dict(loaded["optimizer"])
    after_loading(state.optimizer)
    state.scheduler.load_state_dict(loaded["scheduler"])
    if same_layout:
        _set_rng_state(loaded["rng"])
    return progress


def layout_progress(topology: Topology) -> dict[str, Any]:
    """The part of ``progress`` that describes the layout that wrote it."""
    return {"layout": _layout(topology)}


def _layout(topology: Topology) -> list[int]:
    context = [topology.cp_size] if topology.cp_size > 1 else []  # older ones have no such entry
    return [topology.tp_size, topology.pp_size, topology.dp_size, *context]


def _sharded_state(state: TrainingState, is_loading: bool, with_rng: bool = True) -> dict[str, Any]:
    parts = [_without_extra_state(c.sharded_state_dict()) for c in model_chunks(state.model)]
    # names are local to a chunk; what is saved is named by the layers of the whole model
    model = parts[0] if len(parts) == 1 else {str(n): part for n, part in enumerate(parts)}
    sharded = {
        "model": model,
        "optimizer": state.optimizer.sharded_state_dict(
            model, is_loading=is_loading, metadata=SHARDING
        ),
    }
    if with_rng:
        sharded["rng"] = _sharded_rng_state(state.topology)
    return sharded


def _without_extra_state(sharded: dict[str, Any]) -> dict[str, Any]:
    """Transformer Engine's layers describe their FP8 scaling in an ``_extra_state`` each.

    There is nothing in it in other precisions, and layers without TE have none: with it, a
    checkpoint could only be loaded where the same layers are used.
    """
    return {name: part for name, part in sharded.items() if not name.endswith("_extra_state")}


def _sharded_rng_state(topology: Topology) -> ShardedObject:
    rng = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state(),
        "tracker": tensor_parallel.get_cuda_rng_tracker().get_states(),
    }
    return ShardedObject("rng", rng, (topology.world_size,), (topology.rank,), replica_id=0)


def _set_rng_state(rng: dict[str, Any]) -> None:
    random.setstate(rng["python"])
    np.random.set_state(rng["numpy"])
    torch.set_rng_state(rng["torch"])
    torch.cuda.set_rng_state(rng["device"])
    tensor_parallel.get_cuda_rng_tracker().set_states(rng["tracker"])
