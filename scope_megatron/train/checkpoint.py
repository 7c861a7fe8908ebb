"""Save and resume: student, optimizer, schedule, random numbers, and the position in the data.

Layout under ``output_dir/checkpoints``: one directory ``step_00000040`` per checkpoint in
megatron-core's distributed format (loadable at another TP, PP or DP size), and ``latest``, a text
file that names the newest. A checkpoint is written under a temporary name, gets a manifest of
checksums and is renamed when it is whole, then ``latest`` is replaced: whatever stops a save, an
older checkpoint stays loadable, and a damaged one is never loaded.
"""

from __future__ import annotations

import os
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, tensor_parallel
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from scope_megatron.convert.directory import commit_directory, sync_to_disk
from scope_megatron.parallel.optimizer import after_loading, before_loading
from scope_megatron.parallel.saving import save_sharded
from scope_megatron.parallel.topology import Topology
from scope_megatron.train.integrity import find_damage, write_manifest

FORMAT = 1
LATEST = "latest"
_SHARDING = {
    "distrib_optim_sharding_type": "fully_reshardable",
    "chained_optim_avoid_prefix": True,  # experts' states under their names alone
}


@dataclass
class TrainingState:
    """What a checkpoint holds. ``model`` is the unwrapped student of this rank."""

    model: torch.nn.Module
    optimizer: MegatronOptimizer
    scheduler: OptimizerParamScheduler
    topology: Topology


def checkpoints_dir(output_dir: Path) -> Path:
    return output_dir / "checkpoints"


def candidates(output_dir: Path) -> list[Path]:
    """The run's checkpoints, the one to try first in front: what ``latest`` names, then older ones.

    Empty when the run has none. A directory newer than ``latest`` was never finished.
    """
    root = checkpoints_dir(output_dir)
    pointer = root / LATEST
    if not pointer.exists():
        return []
    newest = pointer.read_text().strip()
    names = {path.name for path in root.glob("step_*")} | {newest}
    return [root / name for name in sorted(names, reverse=True) if name <= newest]


def find_valid(output_dir: Path) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint, and a line on every newer one that is damaged (collective).

    Raises ValueError when there are checkpoints and none of them is whole.
    """
    found: list[Any] = [None, []]
    if dist.get_rank() == 0:
        for directory in candidates(output_dir):
            damage = find_damage(directory)
            if damage is None:
                found[0] = directory
                break
            found[1].append(f"{directory} is damaged: {damage}")
    dist.broadcast_object_list(found, src=0)
    if found[0] is None and found[1]:
        raise ValueError(f"resume: no whole checkpoint is left; {'; '.join(found[1])}")
    return found[0], found[1]


def require_valid(directory: Path) -> None:
    """Raise ValueError when the checkpoint is damaged (collective)."""
    found = [find_damage(directory) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(found, src=0)
    if found[0] is not None:
        raise ValueError(f"resume: {directory} is damaged: {found[0]}; give another checkpoint")


def steps_done(output_dir: Path) -> int:
    """Steps that the newest checkpoint of a run is named after, 0 without one."""
    found = candidates(output_dir)
    return int(found[0].name.removeprefix("step_")) if found else 0


def save_checkpoint(
    state: TrainingState,
    output_dir: Path,
    step: int,
    progress: dict[str, Any],
    keep: int,
) -> Path:
    """Write ``step_{step:08d}`` (collective over all ranks) and return its directory."""
    root = checkpoints_dir(output_dir)
    final = root / f"step_{step:08d}"
    temporary = root / f".tmp_step_{step:08d}"
    if state.topology.is_main:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    dist.barrier()
    sharded = _sharded_state(state, is_loading=False)
    sharded["progress"] = {"format": FORMAT, "step": step, **progress}
    sharded["scheduler"] = state.scheduler.state_dict()
    save_sharded(sharded, temporary, _SHARDING)
    if state.topology.is_main:
        write_manifest(temporary)
        commit_directory(temporary, final)
        _write_atomically(root / LATEST, final.name)
        _forget_others(output_dir, keep)
    dist.barrier()
    return final


def load_checkpoint(state: TrainingState, directory: Path) -> dict[str, Any]:
    """Fill ``state`` from a checkpoint (collective); returns its ``progress``.

    Random-number states come back when the layout is the same; at another one every rank keeps
    its fresh ones (rollouts do not depend on them: they are keyed by seed, step and sample).
    """
    common = dist_checkpointing.load_common_state_dict(str(directory))
    progress = common["progress"]
    if progress["format"] > FORMAT:
        raise ValueError(f"resume: {directory} was written by a newer version of scope_megatron")
    before_loading(state.optimizer)
    same_layout = progress["layout"] == _layout(state.topology)
    sharded = _sharded_state(state, is_loading=True, with_rng=same_layout)
    loaded = dist_checkpointing.load(sharded, str(directory))
    state.model.load_state_dict(loaded["model"], strict=False)
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
    return [topology.tp_size, topology.pp_size, topology.dp_size]


def _sharded_state(state: TrainingState, is_loading: bool, with_rng: bool = True) -> dict[str, Any]:
    model = state.model.sharded_state_dict()
    sharded = {
        "model": model,
        "optimizer": state.optimizer.sharded_state_dict(
            model, is_loading=is_loading, metadata=_SHARDING
        ),
    }
    if with_rng:
        sharded["rng"] = _sharded_rng_state(state.topology)
    return sharded


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


def _write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text + "\n")
    sync_to_disk(temporary)
    os.replace(temporary, path)
    sync_to_disk(path.parent)


def _forget_others(output_dir: Path, keep: int) -> None:
    """Remove all but the newest ``keep``, and what is newer than ``latest``: a damaged checkpoint
    that this run went back behind."""
    kept = candidates(output_dir)[:keep]
    for directory in checkpoints_dir(output_dir).glob("step_*"):
        if directory not in kept:
            shutil.rmtree(directory)
