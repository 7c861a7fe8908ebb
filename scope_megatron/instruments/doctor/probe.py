"""An all-reduce among processes of this machine: `python -m`, and this module's name."""

from __future__ import annotations

import tempfile
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

TIMEOUT = timedelta(seconds=60)


def _sum(rank: int, world_size: int, backend: str, rendezvous: str) -> None:
    dist.init_process_group(
        backend, init_method=rendezvous, rank=rank, world_size=world_size, timeout=TIMEOUT
    )
    device = f"cuda:{rank}" if backend == "nccl" else "cpu"
    total = torch.full((1024,), float(rank + 1), device=device)
    dist.all_reduce(total)
    wanted = world_size * (world_size + 1) / 2
    if not bool((total == wanted).all()):
        raise RuntimeError(f"the sum over {world_size} ranks is {total[0]}, not {wanted}")
    dist.destroy_process_group()


def main() -> None:
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    backend, world_size = ("nccl", min(gpus, 2)) if gpus else ("gloo", 2)
    with tempfile.TemporaryDirectory() as directory:
        rendezvous = f"file://{directory}/rendezvous"
        mp.spawn(_sum, (world_size, backend, rendezvous), nprocs=world_size)
    print(f"{backend}: all-reduce over {world_size} process(es) is right")


if __name__ == "__main__":
    main()
