"""Sizes of models: built in, from files; parameters whole and cut."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scope_megatron.config import ConfigError
from scope_megatron.family import ModelShape
from scope_megatron.instruments.plan.facts.known import KNOWN
from scope_megatron.instruments.plan.facts.shapes import (
    Parameters,
    active_parameters,
    find_shape,
    padded_vocab,
    stage_parameters,
    total_parameters,
)

# billions, as the models' own pages state them
PUBLISHED = {
    "Qwen/Qwen2.5-0.5B": 0.49,
    "google/gemma-3-1b-pt": 1.0,
    "Qwen/Qwen2.5-1.5B": 1.54,
    "Qwen/Qwen2.5-7B": 7.61,
    "Qwen/Qwen2.5-14B": 14.7,
    "Qwen/Qwen2.5-32B": 32.5,
    "Qwen/Qwen2.5-72B": 72.7,
    "Qwen/Qwen3-0.6B": 0.6,
    "Qwen/Qwen3-1.7B": 1.7,
    "Qwen/Qwen3-4B": 4.0,
    "Qwen/Qwen3-8B": 8.2,
    "Qwen/Qwen3-14B": 14.8,
    "Qwen/Qwen3-32B": 32.8,
    "Qwen/Qwen3-30B-A3B": 30.5,
    "Qwen/Qwen3-235B-A22B": 235,
    "meta-llama/Llama-3.2-1B": 1.23,
    "meta-llama/Llama-3.2-3B": 3.21,
    "meta-llama/Llama-3.1-8B": 8.03,
    "meta-llama/Llama-3.1-70B": 70.6,
    "meta-llama/Llama-3.1-405B": 405,
    "mistralai/Mixtral-8x7B-v0.1": 46.7,
    "mistralai/Mixtral-8x22B-v0.1": 141,
}
ACTIVE = {
    "Qwen/Qwen3-30B-A3B": 3.3,
    "Qwen/Qwen3-235B-A22B": 22,
    "mistralai/Mixtral-8x7B-v0.1": 12.9,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_built_in_model_has_as_many_parameters_as_published(name: str) -> None:
    total = total_parameters(ModelShape.of(KNOWN[name])) / 1e9
    assert total == pytest.approx(PUBLISHED[name], rel=0.01, abs=0.025)


@pytest.mark.parametrize("name", ACTIVE)
def test_a_token_of_a_mixture_meets_as_many_as_published(name: str) -> None:
    shape = ModelShape.of(KNOWN[name])
    active = (active_parameters(shape) + shape.vocab * shape.hidden) / 1e9  # they count both ends
    assert active == pytest.approx(ACTIVE[name], rel=0.03)


@pytest.mark.parametrize("name", ["Qwen/Qwen3-1.7B", "Qwen/Qwen2.5-7B", "Qwen/Qwen3-30B-A3B"])
@pytest.mark.parametrize(
    ("tensor", "pipeline", "expert"), [(1, 1, 1), (2, 1, 1), (4, 4, 1), (2, 2, 8)]
)
def test_shards_add_up(name: str, tensor: int, pipeline: int, expert: int) -> None:
    """Over the ranks of a replica; what every tensor rank holds whole (norms, router) is counted by
    the difference of one rank's to a whole stage's."""
    shape = ModelShape.of(KNOWN[name])
    expert = expert if shape.experts else 1
    vocab = padded_vocab([shape], tensor)
    cut = Parameters()
    for stage in range(pipeline):
        cut += stage_parameters(shape, vocab, tensor, pipeline, expert, stage)
    whole = stage_parameters(shape, vocab, 1, 1, 1, 0)
    copied = shape.layers * (2 * shape.hidden + 2 * shape.head_dim * bool(shape.family.qk_norms))
    copied += shape.hidden + shape.layers * shape.hidden * shape.experts
    tied_copy = vocab * shape.hidden if shape.tied and pipeline > 1 else 0
    assert cut.dense * tensor - (tensor - 1) * copied == whole.dense + tied_copy
    assert cut.experts * (expert if expert > 1 else tensor) == whole.experts


def test_a_shape_is_found_by_directory_file_and_name(tmp_path: Path) -> None:
    values = KNOWN["Qwen/Qwen3-8B"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    (tmp_path / "mine.json").write_text(json.dumps(values))
    found = [
        find_shape(where, "model.student")
        for where in (
            tmp_path,
            tmp_path / "config.json",
            tmp_path / "mine.json",
            "Qwen/Qwen3-8B",
            "qwen/qwen3-8b@main",
            "/models/Qwen3-8B",
        )
    ]
    assert all(one.shape == found[0].shape for one in found)
    assert "hub" in found[3].source and str(tmp_path) in found[0].source


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("nobody/nothing", "is no directory and no built-in model"),
        ("Qwen/Qwen3-9B", "did you mean Qwen/Qwen3-8B?"),
    ],
)
def test_an_unknown_model_is_refused(where: str, says: str) -> None:
    with pytest.raises(ConfigError, match=r"^model\.student: ") as caught:
        find_shape(where, "model.student")
    assert says in str(caught.value)
