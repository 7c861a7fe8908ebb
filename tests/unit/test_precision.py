"""What follows the parameters' type: the check's tolerance, the head, the engine's logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from scope_megatron.config import Config
from scope_megatron.learn.head import fuses
from scope_megatron.parallel import platform
from scope_megatron.train.actor import tolerance
from scope_megatron.train.setup import engine_head
from tests.support.tiny_hf import make_tiny_model


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "has_cuda", lambda: True)


def config(root: Path, dtype: str, head: str = "auto", **engine: Any) -> Config:
    return Config.model_validate(
        {
            "output_dir": str(root / "out"),
            "model": {"student": str(root), "teacher": str(root), "dtype": dtype},
            "data": {"train": "train.jsonl", "max_prompt_tokens": 8},
            "rollout": {"prompts_per_step": 2, "max_response_tokens": 8, "engine": engine},
            "objective": {"head": head},
            "train": {"steps": 1, "microbatch_tokens": 64},
        }
    )


def test_the_tolerance_follows_the_type(tmp_path: Path):
    assert tolerance(config(tmp_path, "float32")) == 0.02
    assert tolerance(config(tmp_path, "bfloat16")) == 0.1
    assert tolerance(config(tmp_path, "auto")) == 0.02  # float32 without a GPU
    assert tolerance(config(tmp_path, "bfloat16", logprob_tolerance=0.5)) == 0.5


def test_auto_is_bfloat16_on_cuda(tmp_path: Path, cuda: None):
    assert tolerance(config(tmp_path, "auto")) == 0.1


@pytest.mark.parametrize(
    ("dtype", "head", "capped", "fused"),
    [
        ("float32", "auto", False, False),  # few logits
        ("bfloat16", "auto", False, True),  # the same number of them
        ("bfloat16", "logits", False, False),
        ("bfloat16", "auto", True, False),
        ("float32", "fused", False, True),
    ],
)
def test_half_precision_fuses_the_head(
    tmp_path: Path, dtype: str, head: str, capped: bool, fused: bool
):
    assert fuses(config(tmp_path, dtype, head), 512, capped=capped) is fused


@pytest.mark.parametrize(
    ("family", "dtype", "head", "expected"),
    [
        ("llama", "bfloat16", "auto", torch.float32),
        ("llama", "bfloat16", "fused", torch.float32),
        ("llama", "float32", "auto", None),
        ("llama", "bfloat16", "logits", None),  # the trainer's are rounded as well
        ("gemma2", "bfloat16", "auto", None),  # capped: so are they
    ],
)
def test_the_engine_has_float32_logits_where_the_trainer_has(
    tmp_path: Path, cuda: None, family: str, dtype: str, head: str, expected: torch.dtype | None
):
    make_tiny_model(family, tmp_path)
    assert engine_head(config(tmp_path, dtype, head)) == expected


def test_a_cpu_engine_keeps_its_parameters_type(tmp_path: Path):
    make_tiny_model("llama", tmp_path)
    assert engine_head(config(tmp_path, "bfloat16")) is None
