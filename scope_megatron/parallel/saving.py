"""megatron-core's distributed checkpoint, written synchronously."""

from __future__ import annotations

import queue
from pathlib import Path
from typing import Any

from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies import filesystem_async


def save_sharded(state: dict[str, Any], directory: Path, metadata: dict[str, Any]) -> None:
    """Write ``state`` into an empty directory (collective over all ranks).

    megatron-core starts a manager process per rank for the results of asynchronous writers; it
    takes seconds to start and outlives a rank that is killed. Here the rank waits for its writers
    itself, so a queue in this process serves.
    """
    filesystem_async._results_queue = queue.Queue()
    dist_checkpointing.save(state, str(directory), content_metadata=metadata)
