"""megatron-core's distributed checkpoint in three parts: plan and copy, write, finish.

Only the first part needs the other ranks and the live tensors, so only it costs the training step;
the two others run wherever the caller likes, in a thread for instance. megatron-core's own
asynchronous save is not used: it forks writers and waits for them forever when one of them dies.
"""

from __future__ import annotations

import io
import queue
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import (
    ShardedTensor,
    apply_factories,
    is_main_replica,
)
from megatron.core.dist_checkpointing.state_dict_utils import save_preprocess
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync
from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.storage import WriteResult

from scope_megatron.parallel import platform

COMMON = "common.pt"


@dataclass
class PendingWrite:
    """This rank's part of a checkpoint, in host memory: nothing that training changes."""

    directory: Path
    writer: FileSystemWriterAsync
    metadata: Metadata | None  # of all ranks; rank 0 has it
    common: bytes  # what is not sharded; rank 0 writes it
    format: CheckpointingConfig

    @property
    def bytes(self) -> int:
        """Size of the tensors of all ranks (rank 0 only)."""
        assert self.metadata is not None
        entries = self.metadata.state_dict_metadata.values()
        tensors = (entry for entry in entries if isinstance(entry, TensorStorageMetadata))
        return len(self.common) + sum(
            entry.size.numel() * entry.properties.dtype.itemsize for entry in tensors
        )

    @property
    def files(self) -> list[str]:
        """Names of the files that :meth:`write` leaves."""
        return [name for _, name, _ in self.writer.write_buckets or []]

    def write(self) -> list[WriteResult]:
        """Write and fsync this rank's file; no other rank is asked. Raises what writing raised."""
        written: list[WriteResult] = []
        transforms = [self.writer.transforms] if hasattr(self.writer, "transforms") else []
        for bucket in self.writer.write_buckets or []:
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
        self.writer.finish(self.metadata, written)
        save_config(self.format, str(self.directory))


class Snapshots:
    """Takes snapshots of a state whose structure does not change between them."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[object, ...], torch.Tensor] = {}
        self._validated = False

    def take(
        self, state: dict[str, Any], directory: Path, metadata: dict[str, Any], copy: bool
    ) -> PendingWrite:
        """Plan to write ``state`` into an existing empty directory (collective over all ranks).

        With ``copy`` every tensor that this rank will write is copied to host memory, which this
        object keeps for the next snapshot: the write of the one before must be over. Without, the
        state must not change before it is written.
        """
        state["content_metadata"] = metadata
        apply_factories(state)
        if copy:
            self._copy(state)
        sharded, common = save_preprocess(state, validate_access_integrity=not self._validated)
        self._validated = True
        # where the writers' results go: else a manager process is started, which outlives a kill
        filesystem_async._results_queue = queue.Queue()
        strategy = _Plan("torch_dist", 1, thread_count=1)
        writer, plan = strategy.async_save(sharded, directory)
        if not copy and writer.write_buckets:
            writer.write_buckets = FileSystemWriterAsync.preload_tensors(writer.write_buckets)
        raw = io.BytesIO()
        if dist.get_rank() == 0:
            torch.save(common, raw)
        kind = CheckpointingConfig(strategy.backend, strategy.version)
        return PendingWrite(directory, writer, plan, raw.getvalue(), kind)

    def _copy(self, state: dict[str, Any]) -> None:
        """Put copies in host memory in the place of the tensors that this rank will write."""
        for entry in nested_values(state):
            if not isinstance(entry, ShardedTensor) or not is_main_replica(entry.replica_id):
                continue
            data = entry.data
            key = (entry.key, entry.global_offset, data.shape, data.dtype)
            if key not in self._buffers:
                # memory that was touched before is several times faster to write to
                self._buffers[key] = torch.empty(
                    data.shape, dtype=data.dtype, device="cpu", pin_memory=platform.has_cuda()
                )
            self._buffers[key].copy_(data, non_blocking=True)
            entry.data = self._buffers[key]
        if platform.has_cuda():
            torch.cuda.synchronize()  # the optimizer may change the tensors from here on


class _Plan(TorchDistSaveShardedStrategy):
    """Stops before the writing: gives the filled writer and the metadata of all ranks."""

    def _get_save_and_finalize_callbacks(self, writer: Any, planned: Any) -> Any:
        return writer, planned[1]
