"""A run whose checkpoint would not fit does not start."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from scope_megatron.config import ConfigError, load_config
from tests.support.config_run import make_run

Usage = namedtuple("Usage", "total used free")
PARAMETERS = 2**20


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = make_run(tmp_path, monkeypatch)
    weights = {"model.norm.weight": np.ones((4, PARAMETERS // 4), np.float32)}
    save_file(weights, "student/model.safetensors")
    return directory


@pytest.mark.parametrize(("dtype", "bytes_each"), [("float32", 12), ("bfloat16", 14)])
def test_free_space(
    run: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, bytes_each: int
) -> None:
    enough = int(1.2 * PARAMETERS * bytes_each) + 1
    settings = [f"model.dtype={dtype}"]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, enough))
    load_config("run.yaml", settings)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, enough - 2**20))
    with pytest.raises(ConfigError) as refused:
        load_config("run.yaml", settings)
    mib = 1.2 * bytes_each
    assert list(refused.value.problems) == [
        f"output_dir: run has {mib - 1:,.0f} MiB free but a checkpoint needs {mib:,.0f} MiB; "
        "free some, give another output_dir, or set checkpoint.every=0 and checkpoint.at_end=false"
    ]
    load_config("run.yaml", [*settings, "checkpoint.at_end=false"])
    load_config("run.yaml", settings, command="evaluate")
