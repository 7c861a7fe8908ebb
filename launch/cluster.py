"""Cluster: nodes, GPUs, account, container, as a site's file returns and options replace them."""

# No `from __future__ import annotations`: nemo-run reads the annotations themselves.
import re
from dataclasses import dataclass, field
from typing import Any

TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")


@dataclass(kw_only=True)
class Cluster:
    """One place. All but ``kind`` and ``env`` are for Slurm."""

    kind: str = "slurm"  # slurm or local
    account: str | None = None  # to charge, where the cluster wants one
    partition: str | None = None
    nodes: int = 1
    gpus_per_node: int = 0  # and ranks; 0: no GPU, the ranks divided over the nodes
    cpus_per_task: int | None = None  # CPU cores of a rank
    time: str = "01:00:00"  # Slurm's D-HH:MM:SS
    grace: int = 120  # seconds before the time limit at which the ranks get SIGTERM
    max_restarts: int = 3  # after ranks that died
    container: str | None = None  # image for pyxis
    mounts: list[str] = field(default_factory=list)  # SOURCE:TARGET for the container
    env: dict[str, str] = field(default_factory=dict)  # no secrets
    extra: dict[str, Any] = field(default_factory=dict)  # more of nemo-run's SlurmExecutor

    def ranks_per_node(self, world_size: int, sampling: int = 0) -> int:
        """Ranks that a node starts. ValueError unless all nodes together give ``world_size``,
        of which ``sampling`` only sample."""
        if self.kind == "local" and (self.nodes != 1 or self.container):
            option = "--nodes" if self.nodes != 1 else "--container"
            raise ValueError(f"{option}: needs Slurm; add --executor slurm")
        ranks = self.gpus_per_node or world_size // max(self.nodes, 1)
        if self.nodes * ranks != world_size:
            more = f" + rollout.ranks {sampling}" if sampling else ""
            gpus = f" x --gpus-per-node {self.gpus_per_node}" if self.gpus_per_node else ""
            raise ValueError(
                f"parallel: tensor x pipeline x data{more} is {world_size} ranks, which "
                f"--nodes {self.nodes}{gpus} does not give; change either"
            )
        return ranks


def seconds(time: str) -> int:
    """Slurm's M, M:S, H:M:S, D-H, D-H:M or D-H:M:S in seconds. ValueError naming --time."""
    found = TIME.fullmatch(time)
    if found is None:
        raise ValueError(f"--time: {time!r} is not a time; write D-HH:MM:SS, as 04:00:00")
    days, *rest = (None if part is None else int(part) for part in found.groups())
    parts = [part for part in rest if part is not None]
    if days is not None:
        hours, minutes, secs = (parts + [0, 0])[:3]
        return ((days * 24 + hours) * 60 + minutes) * 60 + secs
    if len(parts) == 3:
        return (parts[0] * 60 + parts[1]) * 60 + parts[2]
    return parts[0] * 60 + (parts[1] if len(parts) == 2 else 0)
