"""Hugging Face -> sharded Megatron -> Hugging Face, bit for bit, on four ranks."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from scope_megatron.family import FAMILIES
from tests.support.harness import run_distributed_test
from tests.support.memory import peak_memory
from tests.support.tiny_hf import MIXTURES, TINY_MODELS, architecture_of, make_tiny_model

WORLD = 4
SHARD_BYTES = 200_000  # several files per model
BUCKET_BYTES = 50_000  # several buckets per stage
LAYOUTS = {  # tensor, pipeline, expert, on four ranks
    "pipeline": (2, 2, 1),
    "data": (2, 1, 1),
    "expert": (1, 2, 2),  # the two replicas of a stage share its experts
    "expert-tensor": (2, 1, 4),
}
CASES = [(family, out) for family in TINY_MODELS for out in ("pipeline", "data")]
CASES += [(family, out) for family in MIXTURES for out in ("expert", "expert-tensor")]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, each exported again at every layout."""
    root = tmp_path_factory.mktemp("roundtrip")
    for family in TINY_MODELS:
        make_tiny_model(family, root / family)
        (root / family / "tokenizer.json").write_text("{}")
    (root / "file").touch()
    results = run_distributed_test(convert, WORLD, root)
    (root / "results.pickle").write_bytes(pickle.dumps(results))
    return root


@pytest.mark.parametrize(("family", "out"), CASES)
def test_export_is_bitwise_equal(root: Path, family: str, out: str) -> None:
    before, after = root / family, root / f"{family}-{out}"
    index = json.loads((after / "model.safetensors.index.json").read_text())
    files = sorted(after.glob("*.safetensors"))
    assert len(files) > 1 and max(file.stat().st_size for file in files) < SHARD_BYTES + 10_000
    written: dict[str, torch.Tensor] = {}
    for file in files:
        tensors = load_file(file)
        assert all(index["weight_map"][name] == file.name for name in tensors)
        written |= tensors
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in written.values())
    assert_same(written, load_file(before / "model.safetensors"))
    for name in ("config.json", "generation_config.json"):
        assert json.loads((after / name).read_text()) == json.loads((before / name).read_text())
    assert (after / "tokenizer.json").read_text() == "{}"
    assert not list(root.glob(".*"))  # nothing temporary is left


@pytest.mark.parametrize("family", TINY_MODELS)
def test_export_loads_in_transformers(root: Path, family: str) -> None:
    from transformers import AutoModelForCausalLM

    tokens = torch.arange(20)[None]
    with torch.no_grad():
        before, after = (
            AutoModelForCausalLM.from_pretrained(root / name)(tokens).logits
            for name in (family, f"{family}-pipeline")
        )
    assert torch.equal(before, after)


def test_every_rank_sees_every_engine_weight(root: Path) -> None:
    """Full tensors in one order on all ranks; tied embeddings also under lm_head's name (vLLM's
    Gemma 2 has no such layer)."""
    results = pickle.loads((root / "results.pickle").read_bytes())
    for family in TINY_MODELS:
        expected = load_file(root / family / "model.safetensors")
        in_engine = FAMILIES[architecture_of(family)].engine_output_layer
        if "lm_head.weight" not in expected and in_engine:
            expected["lm_head.weight"] = expected["model.embed_tokens.weight"]
        for result in results:
            weights = result[family]
            assert list(weights) == list(results[0][family])
            assert_same(weights, expected)


def test_at_most_two_buckets_are_held(root: Path) -> None:
    """The collective may keep one bucket a moment longer; the largest parameter exceeds one."""
    vocabulary, expert = 256 * 64 * 4, 2 * 96 * 64 * 4
    for result in pickle.loads((root / "results.pickle").read_bytes()):
        for experts, held in result["held"]:
            largest = max(vocabulary, experts * expert)  # one from every rank that shares them
            assert BUCKET_BYTES < held <= 2 * BUCKET_BYTES + 2 * largest


def test_refusals_reach_every_rank(root: Path) -> None:
    results = pickle.loads((root / "results.pickle").read_bytes())
    for result in results:
        assert result["occupied"] == f"{root / 'llama'} is not empty; choose another directory"
        assert result["unwritable"].startswith(f"cannot write {root / 'file' / 'out'}: ")
        assert result["written twice"] is None  # overwrite=True


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def convert(rank: int, world_size: int, root: Path) -> dict[str, Any]:
    from scope_megatron.parallel import platform

    platform.initialize()
    from megatron.core import parallel_state

    from scope_megatron.convert.hf import export_hf, load_hf_weights
    from scope_megatron.engine.source import engine_parameters
    from scope_megatron.model.build import build_model, read_hf_config
    from scope_megatron.parallel.topology import create_topology

    results: dict[str, Any] = {"held": []}
    for out, (tensor, pipeline, expert) in LAYOUTS.items():
        topology = create_topology(tensor, pipeline, expert=expert)
        for family in TINY_MODELS if expert == 1 else MIXTURES:
            hf = read_hf_config(root / family)
            model = build_model(hf, topology, torch.float32, trainable=True)
            load_hf_weights(model, root / family, hf, topology)
            # Kept until the end: a bucket must not overwrite what an earlier one gave.
            results[family] = dict(engine_parameters(model, hf, topology, BUCKET_BYTES))
            weights = partial(engine_parameters, model, hf, topology, BUCKET_BYTES)
            held = peak_memory(lambda weights=weights: drain(weights()))
            results["held"].append((expert, held))
            source, target = root / family, root / f"{family}-{out}"
            settings = {"max_shard_bytes": SHARD_BYTES, "bucket_bytes": BUCKET_BYTES}
            export_hf(model, hf, topology, source, target, **settings)

        if out != "data":
            parallel_state.destroy_model_parallel()
            continue
        export = partial(export_hf, model, hf, topology, source, **settings)
        results["occupied"] = message_of(ValueError, export, root / "llama")
        results["unwritable"] = message_of(OSError, export, root / "file" / "out")
        results["written twice"] = message_of(ValueError, export, target, overwrite=True)
        parallel_state.destroy_model_parallel()
    return results


def drain(weights: Iterator[tuple[str, torch.Tensor]]) -> None:
    for item in weights:
        del item  # else the loop would keep it while the next is made


def message_of(
    error: type[Exception], call: Callable[..., None], *args: Any, **settings: Any
) -> str | None:
    try:
        call(*args, **settings)
    except error as raised:
        return str(raised)
    return None
