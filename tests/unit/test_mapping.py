"""The weight table: against loops written out by hand, in both directions, and its refusals."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from scope_megatron.config.modeldir import check_weights, read_shape
from scope_megatron.convert.hf import load_hf_weights
from scope_megatron.convert.mapping import FusedQKV, GatedMLP, Mapping, RowParallel, Rule
from scope_megatron.family import FAMILIES, ModelShape
from tests.support.tiny_hf import TINY_MODELS, make_tiny_model

SIZES = ModelShape(
    family=FAMILIES["LlamaForCausalLM"],
    layers=1,
    hidden=6,
    ffn=8,
    heads=8,
    query_groups=4,
    head_dim=3,
    vocab=10,
    max_positions=16,
    tied=False,
)


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    for family in TINY_MODELS:
        make_tiny_model(family, root / family)
    return {family: root / family for family in TINY_MODELS}


def config_of(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "config.json").read_text())


@pytest.mark.parametrize("family", TINY_MODELS)
def test_the_settings_checks_take_what_transformers_writes(
    family: str, directories: dict[str, Path]
) -> None:
    shape = read_shape(directories[family])
    assert shape == Mapping(config_of(directories[family])).sizes
    check_weights(directories[family], shape.tied)


def test_fused_qkv_interleaves_by_query_group() -> None:
    q, k, v = (torch.randn(shape) for shape in FusedQKV().hf_shapes(SIZES))
    rows = []
    for group in range(SIZES.query_groups):
        for head in range(2):  # 8 heads, 4 groups
            start = (2 * group + head) * SIZES.head_dim
            rows += [q[start + i] for i in range(SIZES.head_dim)]
        rows += [k[group * SIZES.head_dim + i] for i in range(SIZES.head_dim)]
        rows += [v[group * SIZES.head_dim + i] for i in range(SIZES.head_dim)]
    expected = torch.stack(rows)
    for tp in (1, 2, 4, 8):  # 8: two ranks share a group
        shape = (expected.size(0) // tp, SIZES.hidden)
        shards = [FusedQKV().to_megatron([q, k, v], SIZES, rank, shape) for rank in range(tp)]
        assert torch.equal(torch.cat(shards), expected)


def test_one_tensor_may_hold_the_parts_one_after_the_other() -> None:
    parts = [torch.randn(shape) for shape in FusedQKV().hf_shapes(SIZES)]
    whole, rule = torch.cat(parts), Rule(("linear_qkv.weight",), ("qkv_proj.weight",), FusedQKV())
    assert rule.hf_shapes(SIZES) == (whole.shape,)
    for tp in (1, 2, 4, 8):
        shape = (whole.size(0) // tp, SIZES.hidden)
        shards = [rule.to_megatron([whole], SIZES, rank, shape) for rank in range(tp)]
        for rank, shard in enumerate(shards):
            assert torch.equal(shard, FusedQKV().to_megatron(parts, SIZES, rank, shape))
        assert torch.equal(rule.to_hf(torch.stack(shards), SIZES)[0], whole)


def test_gated_mlp_halves_every_shard() -> None:
    gate, up = torch.randn(8, 6), torch.randn(8, 6)
    second = GatedMLP().to_megatron([gate, up], SIZES, 1, (8, 6))  # tp=2
    assert torch.equal(second, torch.cat([gate[4:], up[4:]]))


def test_row_parallel_cuts_the_inputs() -> None:
    weight = torch.randn(6, 24)
    third = RowParallel("heads").to_megatron([weight], SIZES, 2, (6, 6))  # tp=4
    assert torch.equal(third, weight[:, 12:18])


@pytest.mark.parametrize("tp", [1, 2, 4])
@pytest.mark.parametrize("family", TINY_MODELS)
def test_both_directions_are_inverse(family: str, tp: int, directories: dict[str, Path]) -> None:
    weights = load_file(directories[family] / "model.safetensors")
    mapping = Mapping(config_of(directories[family]))
    assert mapping.hf_shapes() == {name: tuple(t.shape) for name, t in weights.items()}
    seen: set[str] = set()
    for rule in mapping.rules:
        name = rule.megatron[0].format(layer=3, expert=1)
        names = mapping.find(name)[1]
        for spelling in rule.megatron:  # Transformer Engine's fused norms have another name
            assert mapping.find(spelling.format(layer=3, expert=1)) == (rule, names)
        sources = [weights[hf_name] for hf_name in names]
        shape = _shard_shape(rule.operation.cut, name, sources, tp)
        shards = [rule.to_megatron(sources, mapping.sizes, rank, shape) for rank in range(tp)]
        assert all(shard.shape == shape for shard in shards)
        back = rule.to_hf(torch.stack(shards), mapping.sizes)
        for hf_name, tensor in zip(names, back, strict=True):
            assert torch.equal(tensor, weights[hf_name]), hf_name
        seen |= set(names)
    assert seen == {name for name in weights if not re.search(r"layers\.[^3]|experts\.[^1]", name)}


def _shard_shape(
    cut: int | None, name: str, sources: list[torch.Tensor], tp: int
) -> tuple[int, ...]:
    """The shape of one tensor rank's parameter, from the full tensors alone."""
    if "embedding" in name or "output_layer" in name:
        return (128, 64)  # 104 rows at tp=1; at tp=2 and 4 the last ranks hold padding only
    shape = [sum(source.size(0) for source in sources), *sources[0].shape[1:]]
    if cut is not None:
        shape[cut] //= tp
    return tuple(shape)


def test_unknown_architecture_is_refused(directories: dict[str, Path]) -> None:
    hf = config_of(directories["llama"]) | {"architectures": ["MambaForCausalLM"]}
    message = (
        "config.json: architecture 'MambaForCausalLM' is not supported; "
        f"supported: {', '.join(FAMILIES)}"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Mapping(hf)


def test_unknown_parameter_is_refused(directories: dict[str, Path]) -> None:
    mapping = Mapping(config_of(directories["llama"]))
    name = "decoder.layers.0.self_attention.linear_qkv.bias"
    message = f"LlamaForCausalLM has no rule for Megatron's parameter '{name}'"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        mapping.find(name)


NORM = "model.layers.1.input_layernorm.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({NORM: None}, "{dir}: tensor '" + NORM + "' is missing"),
        (
            {NORM: torch.ones(63)},
            "{dir}/model.safetensors: tensor '"
            + NORM
            + "' has shape (63,), but config.json asks for (64,)",
        ),
        (
            {NORM: torch.ones(64, dtype=torch.int8)},
            "{dir}/model.safetensors: tensor '" + NORM + "' is I8; only unquantized weights "
            "(F64, F32, F16, BF16) can be loaded",
        ),
        (
            {"model.layers.4.input_layernorm.weight": torch.ones(64)},
            "{dir}/model.safetensors: tensor 'model.layers.4.input_layernorm.weight' "
            "is not part of LlamaForCausalLM",
        ),
        ({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(16)}, None),
    ],
)
def test_wrong_files_are_refused(
    change: dict[str, torch.Tensor | None],
    message: str | None,
    directories: dict[str, Path],
    tmp_path: Path,
) -> None:
    weights = load_file(directories["llama"] / "model.safetensors") | change
    kept = {name: tensor for name, tensor in weights.items() if tensor is not None}
    save_file(kept, tmp_path / "model.safetensors")
    _expect(message, tmp_path, config_of(directories["llama"]))


def test_truncated_file_is_refused(directories: dict[str, Path], tmp_path: Path) -> None:
    content = (directories["llama"] / "model.safetensors").read_bytes()
    file = tmp_path / "model.safetensors"
    file.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=f"^{file}: not a complete safetensors file"):
        load_hf_weights(torch.nn.Module(), tmp_path, config_of(directories["llama"]), None)


def test_index_naming_an_absent_file_is_refused(
    directories: dict[str, Path], tmp_path: Path
) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {NORM: "model-2.safetensors"}}))
    message = f"{index}: tensor '{NORM}' is in model-2.safetensors, which does not exist"
    _expect(message, tmp_path, config_of(directories["llama"]))


def test_empty_directory_is_refused(directories: dict[str, Path], tmp_path: Path) -> None:
    message = "{dir}: there is neither model.safetensors nor model.safetensors.index.json"
    _expect(message, tmp_path, config_of(directories["llama"]))


def test_lm_head_of_tied_embeddings(directories: dict[str, Path], tmp_path: Path) -> None:
    """Needed when untied, ignored when tied."""
    weights = load_file(directories["llama"] / "model.safetensors")
    hf = config_of(directories["llama"])
    save_file(weights, tmp_path / "model.safetensors")
    _expect(None, tmp_path, hf | {"tie_word_embeddings": True})
    del weights["lm_head.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    _expect("{dir}: tensor 'lm_head.weight' is missing", tmp_path, hf)


def _expect(message: str | None, directory: Path, hf: dict[str, Any]) -> None:
    """Loading is refused with exactly this message (None: it is not refused)."""
    nothing = torch.nn.Module()  # the files are checked before any parameter is touched
    if message is None:
        load_hf_weights(nothing, directory, hf, None)
        return
    expected = re.escape(message.format(dir=directory))
    with pytest.raises(ValueError, match=f"^{expected}$"):
        load_hf_weights(nothing, directory, hf, None)
