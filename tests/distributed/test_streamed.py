"""A streamed checkpoint, its vocabulary cut into parts, loads bit for bit at any layout."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.support.harness import run_distributed_test
from tests.support.tiny_hf import STACKED, make_tiny_model

MODELS = ("llama", "qwen2-bias", "mixtral", "gemma3", *STACKED)  # untied, tied, experts, norms


def test_streamed_checkpoint_loads_at_another_layout(tmp_path: Path) -> None:
    for family in MODELS:
        make_tiny_model(family, tmp_path / family)
    run_distributed_test(save, 1, tmp_path)
    for tensors in run_distributed_test(load, 2, tmp_path):
        for family in MODELS:
            expected = load_file(tmp_path / family / "model.safetensors")
            assert tensors[family].keys() == expected.keys()
            for name, tensor in expected.items():
                assert torch.equal(tensors[family][name], tensor), (family, name)


def save(rank: int, world: int, root: Path) -> None:
    """Written by one process, in small files and parts of a vocabulary."""
    from scope_megatron.parallel import platform

    platform.initialize()
    from scope_megatron.convert import megatron_write as megatron
    from scope_megatron.convert.hf import ShardReader
    from scope_megatron.convert.workspace import Workspace
    from scope_megatron.model.build import build_model, read_hf_config
    from scope_megatron.parallel.topology import create_topology

    megatron._PART_BYTES = 8192
    topology = create_topology()
    for family in MODELS:
        hf = read_hf_config(root / family)
        model = build_model(hf, topology, torch.float32, trainable=False, materialize=False)
        workspace = Workspace(root / f"{family}-megatron", {})
        reader, written = ShardReader(root / family, hf), []
        megatron.save_streamed(model, reader, workspace, torch.float32, 50_000, written.append)
        assert len(list(workspace.files.glob("*.distcp"))) > 5
        assert sum(written) >= (root / family / "model.safetensors").stat().st_size - 10_000
        workspace.commit()


def load(rank: int, world: int, root: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Read by pipeline=2, tensor=2 and, mixtures, expert=2; the full tensors, the same of all."""
    from scope_megatron.parallel import platform

    platform.initialize()
    from megatron.core import dist_checkpointing, parallel_state

    from scope_megatron.convert.gather import iter_full_tensors
    from scope_megatron.model.build import build_model, read_hf_config
    from scope_megatron.parallel.topology import create_topology

    out: dict[str, dict[str, torch.Tensor]] = {}
    for sizes in ({"pipeline": 2}, {"tensor": 2}, {"expert": 2}):
        topology = create_topology(**sizes)
        for family in MODELS if "expert" not in sizes else ["mixtral"]:
            hf = read_hf_config(root / family)
            model = build_model(hf, topology, torch.float32, trainable=False)
            for parameter in model.parameters():
                parameter.fill_(float("nan"))
            source = str(root / f"{family}-megatron")
            state = dist_checkpointing.load({"model": model.sharded_state_dict()}, source)
            model.load_state_dict(state["model"])
            tensors = dict(iter_full_tensors(model, hf, topology, 1 << 20))
            earlier = out.setdefault(family, tensors)
            assert all(torch.equal(earlier[name], tensors[name]) for name in tensors)
        parallel_state.destroy_model_parallel()
    return out
