"""vLLM schedules asynchronously on GPUs alone: here that is forced on the CPU.

The next batch is then made before the tokens of the last are back, and one more than was needed is
on its way when every request is done. A fault comes to light a batch later than it happened.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.support.harness import run_distributed_test
from tests.support.tiny_hf import make_tiny_model

# Methods of vLLM's runner: the pass, the call that samples from it, and the sampler inside.
PLACES = ("execute_model", "sample_tokens", "_sample")
CALLS = (0, 5)  # the first of a rollout, one in its middle
Found = dict[bool, dict[Any, Any]]  # by whether the engine was asynchronous


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    root = tmp_path_factory.mktemp("model")
    make_tiny_model("llama-tied", root)
    return {
        forced: run_distributed_test(rollouts, 1, root, forced, timeout=240)[0]
        for forced in (False, True)
    }


def test_tokens_and_scores_are_the_synchronous_ones(found: Found) -> None:
    assert found[True]["tokens"] == found[False]["tokens"]
    assert found[True]["scores"] == found[False]["scores"]


def test_no_batch_stays_queued(found: Found) -> None:
    assert found[False]["queued"] == [None] * len(found[False]["queued"])  # it has no queue
    assert found[True]["queued"] == [0] * len(found[True]["queued"])


@pytest.mark.parametrize("forced", [False, True], ids=["synchronous", "asynchronous"])
@pytest.mark.parametrize("at", CALLS)
@pytest.mark.parametrize("place", PLACES)
def test_a_fault_is_retried(found: Found, place: str, at: int, forced: bool) -> None:
    failed, tokens = found[forced][place, at]
    assert failed
    assert tokens == found[forced]["tokens"]


def rollouts(rank: int, world_size: int, root: Path, forced: bool) -> dict[Any, Any]:
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    from scope_megatron.parallel import platform

    platform.initialize()
    if forced:
        force_asynchronous_scheduling()
    import torch

    from scope_megatron.config import EngineConfig
    from scope_megatron.engine.interface import Sampling
    from scope_megatron.engine.vllm import VLLMEngine
    from scope_megatron.exits import StopRun
    from scope_megatron.types import Prompt

    engine = VLLMEngine(
        root,
        EngineConfig(kv_cache_gib=0.05, max_num_seqs=4),
        max_model_len=64,
        dtype=torch.float32,
        eos_ids=[],
        seed=0,
        own_weights=True,
    )
    core = engine._llm.llm_engine.engine_core.engine_core
    (runner,) = engine._llm.collective_rpc(lambda worker: worker.model_runner)
    prompts = [Prompt(i, tuple(range(3 + i, 9 + i)), "") for i in range(3)]
    sampling = Sampling(samples=4, max_tokens=16, temperature=1.0, seed=3)
    queued = []

    def tokens() -> list[list[int]] | str:
        try:
            made = [rollout.token_ids for rollout in engine.generate(prompts, sampling)]
        except StopRun as stop:
            engine._empty()  # the cases after this one go on
            return str(stop)
        queued.append(None if core.batch_queue is None else len(core.batch_queue))
        return made

    results: dict[Any, Any] = {"tokens": tokens(), "queued": queued}
    results["scores"] = engine.score([list(range(1, 9 + n)) for n in range(6)])
    queued.append(None if core.batch_queue is None else len(core.batch_queue))
    for place in PLACES:
        for at in CALLS:
            failures = fail_once(runner, place, at)
            results[place, at] = (failures, tokens())
            delattr(runner, place)
    assert core.vllm_config.scheduler_config.async_scheduling is forced
    return results


def force_asynchronous_scheduling() -> None:
    from vllm.platforms.cpu import CpuPlatform

    original = CpuPlatform.check_and_update_config.__func__

    def forced(cls: type, config: Any) -> None:
        original(cls, config)
        config.scheduler_config.async_scheduling = True

    CpuPlatform.check_and_update_config = classmethod(forced)  # type: ignore[method-assign]


def fail_once(runner: Any, name: str, at: int) -> list[int]:
    """The call number ``at`` of a method raises; the list then has that number."""
    original, calls, failures = getattr(runner, name), iter(range(10**6)), list[int]()

    def faulty(*args: Any, **kwargs: Any) -> Any:
        number = next(calls)
        if number == at:
            failures.append(number)
            raise RuntimeError("no memory for blocks")
        return original(*args, **kwargs)

    setattr(runner, name, faulty)
    return failures
