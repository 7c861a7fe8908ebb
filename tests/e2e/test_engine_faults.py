"""An engine that fails in the middle of a rollout is emptied and gives the same tokens again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.support.harness import run_distributed_test
from tests.support.tiny_hf import make_tiny_model


def test_failed_rollout_is_made_again(tmp_path: Path) -> None:
    make_tiny_model("llama-tied", tmp_path)
    (found,) = run_distributed_test(rollouts_with_faults, 1, tmp_path, timeout=200)
    assert found["after one fault"] == found["undisturbed"]
    assert found["code"] == 6
    assert "no memory for blocks" in found["message"]


def test_too_little_memory_at_the_start_is_one_line() -> None:
    """What vLLM raises while an engine is built; any other ValueError stays a defect."""
    from vllm.v1.core import kv_cache_utils

    from scope_megatron.engine.start import memory_shortage
    from scope_megatron.exits import StopRun

    with pytest.raises(StopRun, match="^rollout.engine.kv_cache_gib: vLLM could not") as stop:
        with memory_shortage():
            kv_cache_utils._check_enough_kv_cache_memory(0, lambda: 1, 96, lambda free: 1)
    assert stop.value.code == 6
    assert "No available memory for the cache blocks. Try" in str(stop.value)
    assert "\n" not in str(stop.value)
    with pytest.raises(ValueError, match="^no such architecture$"), memory_shortage():
        raise ValueError("no such architecture")


def rollouts_with_faults(rank: int, world_size: int, root: Path) -> dict[str, Any]:
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    from scope_megatron.parallel import platform

    platform.initialize()
    import torch

    from scope_megatron.config import EngineConfig
    from scope_megatron.convert.hf import load_hf_weights
    from scope_megatron.engine.interface import Sampling
    from scope_megatron.engine.source import engine_parameters
    from scope_megatron.engine.vllm import VLLMEngine
    from scope_megatron.exits import StopRun
    from scope_megatron.model.build import build_model, read_hf_config
    from scope_megatron.parallel.topology import create_topology
    from scope_megatron.types import Prompt

    topology, hf = create_topology(), read_hf_config(root)
    model = build_model(hf, topology, torch.float32, trainable=False)
    load_hf_weights(model, root, hf, topology)
    engine = VLLMEngine(
        root,
        EngineConfig(kv_cache_gib=0.05, max_num_seqs=4),
        max_model_len=64,
        dtype=torch.float32,
        eos_ids=[],
        seed=0,
    )
    engine.send_parameters(engine_parameters(model, hf, topology, 1 << 20))
    prompts = [Prompt(i, tuple(range(3 + i, 9 + i)), "") for i in range(3)]
    sampling = Sampling(samples=4, max_tokens=16, temperature=1.0, seed=3)
    core = engine._llm.llm_engine
    step = core.step

    def fail_at(*numbers: int) -> None:
        calls = iter(range(10**6))

        def faulty() -> Any:
            if next(calls) in numbers:
                raise RuntimeError("no memory for blocks")
            return step()

        core.step = faulty

    def tokens() -> list[list[int]]:
        return [rollout.token_ids for rollout in engine.generate(prompts, sampling)]

    found: dict[str, Any] = {"undisturbed": tokens()}
    fail_at(25)
    found["after one fault"] = tokens()
    fail_at(*range(10, 1000))
    try:
        tokens()
    except StopRun as stop:
        found |= {"code": stop.code, "message": str(stop)}
    return found
