"""Joining the job: how long its collectives wait."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scope_megatron.parallel import platform

ROOT = Path(__file__).parents[2]
CODE = """
import torch, torch.distributed as dist
from scope_megatron.config import load_config
from scope_megatron.train.setup import start_process
config = load_config("configs/quickstart.yaml", [
    "parallel.tensor=1", "parallel.data=1", "faults.hang_timeout_s=130", "output_dir={output}",
])
topology = start_process(config)
for group in (dist.group.WORLD, topology.tp_group, topology.pp_group, topology.dp_group):
    backend = group._get_backend(torch.device("cpu"))
    print(backend.options._timeout.total_seconds())
"""


@pytest.mark.slow
def test_collectives_give_up_after_the_watchdog(tmp_path: Path) -> None:
    """The default group after hang_timeout_s and 300 s more; Megatron's, told in minutes, no
    earlier. With NCCL these are the times after which it aborts the rank."""
    env = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "MASTER_PORT")}
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(output=tmp_path / "run")],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.stdout.split() == ["430.0", "480.0", "480.0", "480.0"], done.stderr


def test_a_gpu_that_torch_cannot_use_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Driver and builds agreed, so that CUDA was chosen, but the device does not answer."""
    monkeypatch.setenv("SCOPE_DEVICE", "cuda")  # and GPUs are hidden from these tests
    with pytest.raises(ValueError, match=r"^platform.device: is cuda, .* but torch cannot use the"):
        platform.initialize.__wrapped__()
