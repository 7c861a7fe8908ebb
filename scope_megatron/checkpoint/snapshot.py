"""megatron-core's distributed checkpoint in three parts: snapshot, write, finish.

Only the snapshot needs the live tensors, so only it costs the training step; the two others run
wherever the caller likes, in a thread for instance. megatron-core's own asynchronous save is not
used: it forks writers and waits for them forever when one of them dies.
"""

from __future__ import annotations

import copy
import io
import queue
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import (
    ShardedObject,
    ShardedTensor,
    apply_factories,
    is_main_replica,
)
from megatron.core.dist_checkpointing.state_dict_utils import save_preprocess
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync
from megatron.core.dist_checkpointing.strategies.state_dict_saver import save_state_dict_async_plan
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreSavePlanner,
    _replace_state_dict_keys_with_sharded_keys,
    mcore_to_pyt_state_dict,
)
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.storage import WriteResult

from scope_megatron.checkpoint.arena import Arena
from scope_megatron.parallel import platform

COMMON = "common.pt"
TORCH_DIST = CheckpointingConfig("torch_dist", 1)  # what megatron-core's load looks for


@dataclass
class PendingWrite:
    """This rank's part of a checkpoint. If it is a copy, training changes none of it."""

    directory: Path
    sharded: dict[str, Any]
    common: bytes  # what is not sharded; rank 0 writes it
    writer: FileSystemWriterAsync | None = None  # filled by plan
    metadata: Metadata | None = None  # of all ranks; rank 0 has it after plan

    def plan(self, group: ProcessGroup) -> None:
        """Agree on who writes what; collective over ``group``, which has all ranks in order."""
        # where the writers' results go: else a manager process is started, which outlives a kill
        filesystem_async._results_queue = queue.Queue()
        renamed, _, _ = _replace_state_dict_keys_with_sharded_keys(self.sharded, True)
        self.writer = FileSystemWriterAsync(self.directory, thread_count=1)
        planner = MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False)
        (_, self.metadata, _), *_ = save_state_dict_async_plan(
            mcore_to_pyt_state_dict(renamed, False), self.writer, group, 0, planner=planner
        )

    @property
    def bytes(self) -> int:
        """Size of the tensors of all ranks (rank 0 only, after plan)."""
        assert self.metadata is not None
        entries = self.metadata.state_dict_metadata.values()
        tensors = (entry for entry in entries if isinstance(entry, TensorStorageMetadata))
        sizes = (entry.size.numel() * entry.properties.dtype.itemsize for entry in tensors)
        return len(self.common) + int(sum(sizes))

    @property
    def _buckets(self) -> list[Any]:
        assert self.writer is not None, "plan comes first"
        return self.writer.write_buckets or []

    @property
    def files(self) -> list[str]:
        """Names of the files that :meth:`write` leaves."""
        return [name for _, name, _ in self._buckets]

    def write(self) -> list[WriteResult]:
        """Write and fsync this rank's file; no other rank is asked. Raises what writing raised."""
        written: list[WriteResult] = []
        # waiting for the device would be for device 0 in a thread, and make a context on it
        buckets = FileSystemWriterAsync.preload_tensors(self._buckets, non_blocking=False)
        transforms = [t] if (t := getattr(self.writer, "transforms", None)) else []
        for bucket in buckets:
            results: queue.Queue[tuple[int, Any]] = queue.Queue()
            count: queue.Queue[int] = queue.Queue()
            count.put(0)
            FileSystemWriterAsync.write_preloaded_data(transforms, 0, bucket, results, count, True)
            _, outcome = results.get()
            if isinstance(outcome, Exception):
                raise outcome
            written += outcome
        return written

    def finish(self, written: list[list[WriteResult]]) -> None:
        """Write what describes all ranks' files (rank 0, after every rank has written)."""
        with (self.directory / COMMON).open("wb") as file:
            file.write(self.common)
        assert self.writer is not None
        self.writer.finish(self.metadata, written)
        save_config(TORCH_DIST, str(self.directory))


class Snapshots:
    """Takes snapshots of a state whose structure does not change between them."""

    def __init__(self) -> None:
        self._arena = Arena()  # memory that was touched before is several times faster to write to
        self._validated = False

    def take(
        self, state: dict[str, Any], directory: Path, metadata: dict[str, Any], copied: bool
    ) -> PendingWrite:
        """Prepare to write ``state`` into an existing empty directory (collective over all ranks).

        With ``copied`` everything that this rank will write is copied to host memory, which this
        object keeps for the next snapshot: the write of the one before must be over. Without, the
        state must not change before it is written.
        """
        state["content_metadata"] = metadata
        apply_factories(state)
        if copied:
            self._copy(state)
        sharded, common = save_preprocess(state, validate_access_integrity=not self._validated)
        self._validated = True
        raw = io.BytesIO()
        if dist.get_rank() == 0:
            torch.save(common, raw)
        return PendingWrite(directory, sharded, raw.getvalue())

    def _copy(self, state: dict[str, Any]) -> None:
        """Put copies in the place of objects and of the tensors that this rank will write."""
        written: list[tuple[Hashable, ShardedTensor]] = []
        for entry in nested_values(state):
            if isinstance(entry, ShardedObject):
                entry.data = copy.deepcopy(entry.data)
            if isinstance(entry, ShardedTensor) and is_main_replica(entry.replica_id):
                data = entry.data
                written.append(((entry.key, entry.global_offset, data.shape, data.dtype), entry))
        copies = self._arena.like({key: entry.data for key, entry in written})
        for name, entry in written:
            entry.data = copies[name].copy_(entry.data, non_blocking=True)
        if platform.has_cuda():
            torch.cuda.synchronize()  # the optimizer may change the tensors from here on
