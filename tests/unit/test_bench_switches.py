"""Every switch of the benchmark is a valid configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import switches_fixed
from benchmarks.bench_switches import COMMON, SWITCHES
from scope_megatron.config import load_config

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", SWITCHES)
def test_switch_loads(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    out = f"output_dir={tmp_path}/run"
    load_config("configs/quickstart.yaml", [*COMMON, *SWITCHES[name], out])
    switches_fixed.settings(name, tmp_path)
