"""Shards into the engine's parameters on CUDA, across sleep and waking."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tests.support.harness import need_gpus, run_distributed_test
from tests.support.tiny_hf import make_tiny_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
LAYOUTS = [(1, 1, 1), (2, 1, 1), (2, 1, 2), (1, 2, 1), (2, 2, 2)]
SEQUENCE = list(range(1, 41))


@pytest.mark.timeout(900)  # vLLM starts twice and compiles: minutes when its cache is cold
@pytest.mark.parametrize("family", ["llama-tied", "qwen3-norms"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_direct_weights_equal_vllms_loaders(
    tmp_path: Path, family: str, layout: tuple[int, int, int]
) -> None:
    """The same log-probabilities to the bit as after a load by vLLM's own loaders."""
    world = layout[0] * layout[1]
    need_gpus(world)
    for seed, name in enumerate(("a", "b")):
        make_tiny_model(family, tmp_path / name, torch.bfloat16, seed=seed)
    for result in run_distributed_test(
        scores, world, tmp_path, layout, timeout=720, backend="nccl"
    ):
        assert result["refused"] == ""
        assert result["direct a"] == result["loaders a"]
        assert result["direct b"] == result["loaders b"]
        assert result["direct a"] != result["direct b"]


def scores(
    rank: int, world_size: int, root: Path, layout: tuple[int, int, int]
) -> dict[str, object]:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    from scope_megatron.parallel import platform

    platform.initialize()
    from scope_megatron.config import EngineConfig
    from scope_megatron.convert.hf import load_hf_weights
    from scope_megatron.engine.source import ModelParameters
    from scope_megatron.engine.vllm import VLLMEngine
    from scope_megatron.model.build import build_model, read_hf_config
    from scope_megatron.parallel.topology import create_topology

    tensor, pipeline, engine_tensor = layout
    topology = create_topology(tensor, pipeline)
    hf = read_hf_config(root / "a")
    model = build_model(hf, topology, torch.bfloat16, trainable=True)
    engine = VLLMEngine(
        root / "a",
        EngineConfig(tensor=engine_tensor, gpu_memory_utilization=0.3, max_num_seqs=8),
        max_model_len=64,
        dtype=torch.bfloat16,
        eos_ids=[],
        seed=0,
    )
    weights = ModelParameters(model, hf, topology, bucket_bytes=50_000)
    load_hf_weights(model, root / "a", hf, topology)
    engine.send_parameters(weights)  # proves the plan
    results: dict[str, object] = {}
    for name in ("b", "a"):
        load_hf_weights(model, root / name, hf, topology)
        for how, source in (("direct", weights), ("loaders", iter(weights))):
            engine.sleep()
            engine.send_parameters(source)
            results[f"{how} {name}"] = engine.score([SEQUENCE])
    results["refused"] = engine._direct.refused
    return results
