"""What vLLM needs around it while it starts in a rank of a job."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

from scope_megatron.config import EngineConfig
from scope_megatron.exits import ENGINE, StopRun
from scope_megatron.family import family_of
from scope_megatron.parallel import platform
from scope_megatron.parallel.agree import from_main


def prepare_environment(settings: EngineConfig, model_dir: Path) -> None:
    """Set the environment variables that vLLM reads when it is imported."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # in this process: weights stay in memory
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    # With 1 vLLM asks of the default group what ours need not have: gloo and NCCL in one.
    os.environ["VLLM_DISTRIBUTED_USE_SPLIT_GROUP"] = "0"
    if not platform.has_cuda():
        # compiling the few small functions that vLLM compiles even so takes longer than they do
        torch.compiler.set_stance("force_eager")
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(max(1, round(settings.kv_cache_gib))))
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    elif family_of(json.loads((model_dir / "config.json").read_text())).experts:
        # versions before 0.32 would run a mixture by their first runner, which holds a random
        # generator per request and the whole prompt's logits when it scores
        os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "1")


@contextmanager
def memory_shortage() -> Iterator[None]:
    """An engine that finds too little memory when it is built ends the run in one line.

    vLLM raises a ValueError for it, while the other ranks go on to wait in its collectives.
    """
    try:
        yield
    except (ValueError, RuntimeError) as error:  # torch's OutOfMemoryError is a RuntimeError
        if "memory" not in str(error):
            raise
        reason = " ".join(str(error).split())[:300]
        setting = "gpu_memory_utilization" if platform.has_cuda() else "kv_cache_gib"
        raise StopRun(
            ENGINE,
            f"rollout.engine.{setting}: vLLM could not start: {reason}; give it more or less, "
            "or lower rollout.engine.max_model_len or max_num_seqs",
        ) from None


@contextmanager
def ranks_of_the_world() -> Iterator[None]:
    """vLLM takes its rank from the environment: that of the torch.distributed world, which has not
    every rank of the job where sampling ranks are a world of their own."""
    if not dist.is_initialized():
        yield
        return
    before = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE")}
    os.environ |= {"RANK": str(dist.get_rank()), "WORLD_SIZE": str(dist.get_world_size())}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def name_shared_memory() -> None:
    """Give the shared memory of vLLM's CPU ranks a name of this job's own (collective).

    vLLM names it after the ranks alone: two jobs on a machine would meet in it, and what a killed
    job left behind would stop every later one.
    """
    from vllm.distributed.device_communicators import cpu_communicator

    job = from_main(lambda: uuid.uuid4().hex[:12])
    named = cpu_communicator._CPUSHMDistributed
    original = named.make_group_name
    named.make_group_name = staticmethod(lambda communicator: f"{original(communicator)}-{job}")
