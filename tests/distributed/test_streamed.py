"""A streamed checkpoint, its vocabulary cut into parts, loads bit for bit at another layout."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.distributed.harness import run_distributed_test
from tests.tiny_hf import MIXTURES, make_tiny_model

FAMILIES = ("llama", "qwen2-bias", "mixtral", "gemma3")  # untied, tied, experts, more norms


def test_streamed_checkpoint_loads_at_another_layout(tmp_path: Path) -> None:
    for family in FAMILIES:
        make_tiny_model(family, tmp_path / family)
        (tmp_path / f"{family}-megatron").mkdir()
    for tensors in run_distributed_test(save_and_load, 2, tmp_path):
        for family in FAMILIES:
            expected = load_file(tmp_path / family / "model.safetensors")
            assert tensors[family].keys() == expected.keys()
            for name, tensor in expected.items():
                assert torch.equal(tensors[family][name], tensor), (family, name)


def save_and_load(rank: int, world: int, root: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Written by tensor=2, mixtures by expert=2; read by pipeline=2."""
    from scope_megatron.parallel import platform

    platform.initialize()
    from megatron.core import dist_checkpointing, parallel_state

    from scope_megatron.convert import megatron
    from scope_megatron.convert.gather import iter_full_tensors
    from scope_megatron.convert.hf import ShardReader
    from scope_megatron.parallel.model import build_model, read_hf_config
    from scope_megatron.parallel.topology import create_topology

    megatron._PART_BYTES = 8192
    written = 0

    def advance(nbytes: int) -> None:
        nonlocal written
        written += nbytes

    for family in FAMILIES:
        mixture = family in MIXTURES
        topology = create_topology(tensor=1 if mixture else 2, expert=2 if mixture else 1)
        hf = read_hf_config(root / family)
        model = build_model(hf, topology, torch.float32, trainable=False, materialize=False)
        reader = ShardReader(root / family, hf)
        target = root / f"{family}-megatron"
        megatron.save_streamed(model, reader, topology, torch.float32, target, advance)
        parallel_state.destroy_model_parallel()
    assert written > 0

    topology = create_topology(pipeline=2)
    out = {}
    for family in FAMILIES:
        hf = read_hf_config(root / family)
        model = build_model(hf, topology, torch.float32, trainable=False)
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
        source = str(root / f"{family}-megatron")
        state = dist_checkpointing.load({"model": model.sharded_state_dict()}, source)
        model.load_state_dict(state["model"])
        out[family] = dict(iter_full_tensors(model, hf, topology, 1 << 20))
    return out
