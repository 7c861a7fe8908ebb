"""Injected faults name modules by strings: a renamed module must be noticed, not passed over."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

INJECT = Path(__file__).parents[1] / "faults/inject"


def injector() -> ModuleType:
    spec = importlib.util.spec_from_file_location("inject", INJECT / "sitecustomize.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_patched_module_exists() -> None:
    module = injector()
    names = {*module.EVERY_FAULT, *(name for name, _ in module.PATCHES.values())}
    assert len(names) >= 5
    for name in names:
        module.require_module(name)


@pytest.mark.parametrize("name", ["scope_megatron.train.watchdog", "no_such_package.module"])
def test_an_unknown_module_is_an_error(name: str) -> None:
    module = injector()
    with pytest.raises(module.UnknownModule, match=name):
        module.require_module(name)


def test_a_rank_with_a_wrong_patch_ends_at_once(tmp_path: Path) -> None:
    source = (INJECT / "sitecustomize.py").read_text()
    broken = source.replace("scope_megatron.job.watchdog", "scope_megatron.job.moved_away")
    assert broken != source
    (tmp_path / "sitecustomize.py").write_text(broken)
    fault = {"rank": 0, "steps": [1], "phase": "train", "action": "kill", "marker": "unused"}
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", "print('ran')"],
        env=os.environ
        | {"PYTHONPATH": f"{tmp_path}:{root}", "RANK": "0", "SCOPE_FAULT": json.dumps(fault)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 70
    assert "there is no module scope_megatron.job.moved_away" in done.stderr
    assert "ran" not in done.stdout
