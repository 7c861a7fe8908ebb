"""Tensors of the engine in this process, for counting its memory."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def engine_tensors(engine: Any) -> list[Tensor]:
    """Parameters and key-value cache of a vLLM engine that is awake; none of one that sleeps.

    vLLM's CPU build keeps most weights packed by its kernels, outside of any tensor: those are not
    among them.
    """
    llm = getattr(engine, "_llm", None)
    if llm is None or getattr(engine, "_asleep", False):
        return []
    (found,) = llm.collective_rpc(_tensors_of)  # its worker is in this process
    tensors: list[Tensor] = found
    return tensors


def _tensors_of(worker: Any) -> list[Tensor]:
    cache = [c for c in getattr(worker.model_runner, "kv_caches", []) if isinstance(c, Tensor)]
    return [*worker.get_model().parameters(), *cache]
