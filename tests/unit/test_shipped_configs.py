"""Every configuration in configs/ loads; each algorithm has one that runs on this machine."""

from __future__ import annotations

import tempfile
import typing
from pathlib import Path

import pytest
import yaml

from scope_megatron.config import AlgorithmConfig, Config, load_config, validating_for

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "configs").glob("*.yaml"))
ELSEWHERE = {"paper_1p5b", "reference"}  # names models and data that are not shipped
NOBODYS = "scope-megatron-tests-no-run"


def load(path: Path, *overrides: str) -> Config:
    """Into a directory of nobody's: that of the configuration may hold a run that somebody made."""
    if path.stem not in ELSEWHERE:
        return load_config(path, [f"output_dir={tempfile.gettempdir()}/{NOBODYS}", *overrides])
    with validating_for(gpus=8):
        return load_config(path, list(overrides), check_files=False)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configuration_loads(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    named = yaml.safe_load(path.read_text())["output_dir"]
    assert Path(named).name == path.stem, "two of them never share a directory"
    assert load(path, "seed=5").seed == 5


def test_each_algorithm_has_a_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    here = [path for path in SHIPPED if path.stem not in ELSEWHERE]
    names = {load(path).algorithm.name for path in here}
    assert names == set(typing.get_args(AlgorithmConfig.model_fields["name"].annotation))
