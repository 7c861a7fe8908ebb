"""Every row of Megatron's shards reaches engines on other ranks, whatever either's tensor size.

One process holds all shards and all engines: what is sent to whom is looked at, not the sending.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.test_reshard import BUCKET, MODELS, Engine, engine_tensors
from tests.support.harness import run_distributed_test
from tests.support.tiny_hf import make_tiny_model

TENSORS, ENGINES, STAGES = (1, 2, 4), (1, 2, 4), 2


@pytest.mark.timeout(180)
def test_every_parameter_arrives(tmp_path: Path) -> None:
    for family in MODELS:
        make_tiny_model(family, tmp_path / family)
    (found,) = run_distributed_test(carry, 1, tmp_path, timeout=120)
    assert len(found) >= len(MODELS) * 6
    assert {case: wrong for case, wrong in found.items() if wrong} == {}


def carry(rank: int, world_size: int, root: Path) -> dict[tuple[str, int, int], list[str]]:
    """(family, trainer's tensor size, engine's) -> parameters that arrive wrongly."""
    from scope_megatron.parallel import platform

    platform.initialize()
    from scope_megatron.convert.gather import global_parameters
    from scope_megatron.model.build import build_model, read_hf_config
    from scope_megatron.parallel.topology import create_topology

    topology = create_topology(1, 1)
    found = {}
    for family in MODELS:
        hf = read_hf_config(root / family)
        model = build_model(hf, topology, torch.float32, trainable=True)
        shapes = {name: tuple(p.shape) for name, p in global_parameters(model)}
        kv = hf["num_key_value_heads"]
        for tensor in (size for size in TENSORS if kv % size == 0):
            for engine in (size for size in ENGINES if kv % size == 0 or size % kv == 0):
                case = family, tensor, engine
                found[case] = wrong_parameters(root / family, hf, shapes, tensor, engine)
    return found


def wrong_parameters(
    directory: Path, hf: dict[str, Any], shapes: dict[str, Any], tensor: int, engine: int
) -> list[str]:
    from scope_megatron.convert.hf import ShardReader
    from scope_megatron.engine.direct import EngineParameters
    from scope_megatron.engine.parcels import ParcelPlan, TrainerShards, buffers
    from scope_megatron.engine.reshard import Held

    reader, state = ShardReader(directory, hf), load_file(directory / "model.safetensors")
    own: dict[tuple[int, int], dict[str, torch.Tensor]] = {}
    held = []
    for number, (name, whole) in enumerate(shapes.items()):
        rule, _ = reader.mapping.find(name)
        if rule.duplicate:
            continue
        cut, stage = rule.operation.cut, number % STAGES  # any stage may hold any parameter
        shape = tuple(n // tensor if d == cut else n for d, n in enumerate(whole))
        held.append(Held(name, shape, torch.float32, stage))
        for rank in range(tensor):
            own.setdefault((stage, rank), {})[name] = reader.shard(name, shape, rank)
    wrong = []
    for taker in range(engine):
        expected = engine_tensors(state, hf, engine, taker)
        parameters = EngineParameters(module := Engine(expected))
        shards = TrainerShards(tuple(held), hf, tensor, 1)
        plan = ParcelPlan(shards, parameters.layout(engine), BUCKET)
        mine = [parcel for parcel in plan.parcels if parcel.taker == taker]
        parameters.clear_padding(plan.rows[taker])
        for parcel, buffer in zip(mine, buffers(mine, torch.device("cpu")), strict=True):
            parcel.for_sender().fill(buffer, own[parcel.source])
            parcel.land(buffer, parameters.write)
        assert max(p.numel * 4 for p in mine) <= BUCKET, "no row is longer"
        arrived = dict(module.named_parameters())
        wrong += [name for name, t in expected.items() if not torch.equal(arrived[name], t)]
    return wrong
