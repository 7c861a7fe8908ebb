"""All gloo groups of a process stand on one event loop."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

CODE = """
import json, sys
from pathlib import Path
import torch, torch.distributed as dist
from scope_megatron.parallel import gloo
from datetime import timedelta

def loops():
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    return sum("gloo_tcp_loop" in name for name in names)

if sys.argv[1] == "shared":
    gloo.share_devices()
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
groups = [dist.new_group(timeout=timedelta(seconds=70)) for _ in range(5)]
values = torch.ones(3)
for group in groups:
    dist.all_reduce(values, group=group)
found = {"loops": loops(), "sum": values.sum().item()}
found["timeout"] = groups[0]._get_backend(torch.device("cpu")).options._timeout.total_seconds()
dist.destroy_process_group()
print(json.dumps(found))
"""


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("kind", "loops"), [("shared", 1), ("torch's", 6)])
def test_event_loops(kind: str, loops: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE, kind], capture_output=True, text=True, timeout=110, check=True
    )
    assert json.loads(done.stdout) == {"loops": loops, "sum": 3.0, "timeout": 70.0}
