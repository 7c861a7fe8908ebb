"""Logits of the packed, sharded model equal transformers' on every sequence alone."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.support.harness import run_distributed_test
from tests.support.tiny_hf import MIXTURES, TINY_MODELS, VOCAB, make_tiny_model

TOLERANCE = 1e-4
LENGTHS = (3, 40, 13)  # 56 tokens, a multiple of tp; 40 reaches into llama3's scaled frequencies
LAYOUTS = {  # tensor, pipeline, sequence, expert: all of them fit into a world of two
    "one": (1, 1, False, 1),
    "tensor": (2, 1, False, 1),
    "sequence": (2, 1, True, 1),
    "pipeline": (1, 2, False, 1),
}
EXPERT_LAYOUTS = {
    "expert-data": (1, 1, False, 2),  # the replicas, with different tokens, share the experts
    "expert-tensor": (2, 1, False, 2),
    "expert-sequence": (2, 1, True, 2),
}


def cases() -> list[tuple[str, str]]:
    every = [(family, layout) for family in TINY_MODELS for layout in LAYOUTS]
    return every + [(family, layout) for family in MIXTURES for layout in EXPERT_LAYOUTS]


def sequences(replica: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    all_ = [torch.randint(0, VOCAB, (length,), generator=generator) for length in LENGTHS]
    return all_[replica:] + all_[:replica]  # every replica runs them in another order


@pytest.fixture(scope="module")
def errors(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], float]:
    """Largest absolute difference per (family, layout), measured in one start of the world."""
    root = tmp_path_factory.mktemp("logits")
    for family in TINY_MODELS:
        model = make_tiny_model(family, root / family)
        with torch.no_grad():
            for replica in range(2):
                logits = [model(tokens[None]).logits[0] for tokens in sequences(replica)]
                torch.save(torch.cat(logits), root / f"{family}.{replica}.logits")
    ranks = run_distributed_test(measure, 2, root)
    return {case: max(rank[case] for rank in ranks) for case in ranks[0]}


@pytest.mark.parametrize(("family", "layout"), cases())
def test_logits_match(errors: dict[tuple[str, str], float], family: str, layout: str) -> None:
    assert errors[family, layout] < TOLERANCE


def measure(rank: int, world_size: int, root: Path) -> dict[tuple[str, str], float]:
    from scope_megatron.parallel import platform

    platform.initialize()
    from megatron.core import parallel_state

    from scope_megatron.convert.hf import load_hf_weights
    from scope_megatron.model.build import build_model, read_hf_config
    from scope_megatron.parallel.topology import create_topology

    out = {}
    for layout, (tensor, pipeline, sequence, expert) in (LAYOUTS | EXPERT_LAYOUTS).items():
        topology = create_topology(tensor, pipeline, sequence, expert=expert)
        for family in TINY_MODELS if layout in LAYOUTS else MIXTURES:
            hf = read_hf_config(root / family)
            model = build_model(hf, topology, torch.float32, trainable=False)
            if expert > 1:
                assert len(model.decoder.layers[0].mlp.experts.local_experts) == 4 // expert
            load_hf_weights(model, root / family, hf, topology)
            logits = full_logits(model, topology)
            expected = torch.load(root / f"{family}.{topology.dp_rank}.logits")
            assert expected.abs().max() > 1.0  # large enough for the tolerance to mean something
            out[family, layout] = (logits - expected).abs().max().item()
        parallel_state.destroy_model_parallel()
    return out


@torch.no_grad()
def full_logits(model: torch.nn.Module, topology: object) -> torch.Tensor:
    """[T, VOCAB] of the packed sequences, on every rank."""
    from scope_megatron.parallel.pipeline import packed_forward
    from scope_megatron.parallel.topology import broadcast_from_last_stage
    from scope_megatron.types import PackedBatch

    parts = sequences(topology.dp_rank)
    lengths = [part.numel() for part in parts]
    tokens = torch.cat(parts)
    zeros, bounds = torch.zeros_like(tokens), [0, *accumulate(lengths)]
    batch = PackedBatch(
        tokens=tokens,
        targets=zeros,
        position_ids=torch.cat([torch.arange(length) for length in lengths]),
        rows=zeros[:0],
        cu_seqlens=torch.tensor(bounds, dtype=torch.int32),
        bounds=bounds,
        members=[],
        counts=[],
    )
    if not topology.is_first_stage:
        hidden = torch.empty(tokens.numel(), 1, 64)
        dist.recv(hidden, group=topology.pp_group, group_src=topology.pp_rank - 1)
        model.set_input_tensor(hidden)
    output = packed_forward(model, batch)
    if not topology.is_last_stage:
        dist.send(output, group=topology.pp_group, group_dst=topology.pp_rank + 1)
        output = torch.empty(tokens.numel(), VOCAB)
    else:
        output = output.reshape(tokens.numel(), -1)
        shards = [torch.empty_like(output) for _ in range(topology.tp_size)]
        dist.all_gather(shards, output.contiguous(), group=topology.tp_group)
        output = torch.cat(shards, dim=-1)[:, :VOCAB].contiguous()
    return broadcast_from_last_stage(output, topology)
