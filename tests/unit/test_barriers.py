"""A barrier over NCCL names this rank's GPU, which torch would otherwise guess."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from scope_megatron.parallel import agree, platform

PACKAGE = Path(__file__).parents[2] / "scope_megatron"


def bare_barriers(source: str) -> list[int]:
    """Lines that call ``dist.barrier``, whatever torch.distributed is called there."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        if node.func.attr == "barrier"
        if ast.unparse(node.func.value) not in ("agree", "self.group")  # the group's: gloo's
    ]


def test_only_the_helper_calls_torchs_barrier() -> None:
    assert bare_barriers("dist.barrier()\nagree.barrier()\ntorch.distributed.barrier(g)") == [1, 3]
    found = {
        str(path.relative_to(PACKAGE)): lines
        for path in PACKAGE.rglob("*.py")
        if (lines := bare_barriers(path.read_text(encoding="utf-8")))
    }
    assert list(found) == ["parallel/agree.py"]


@pytest.mark.parametrize(("backend", "devices"), [("nccl", [5]), ("gloo", None)])
def test_nccl_is_told_the_gpu_of_the_rank(
    backend: str, devices: list[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    monkeypatch.setattr(platform, "device", lambda: torch.device("cuda", 5))
    monkeypatch.setattr(dist, "get_backend", lambda group: backend)
    monkeypatch.setattr(dist, "barrier", lambda group, device_ids: told.append(device_ids))
    agree.barrier()
    assert told == [devices]
