"""Where runs can execute at this site. Edit this file, or copy it and name the copy: --site COPY.

Every function is an executor: `--executor NAME`. The launcher's options replace single fields,
`--nodes 4`. Secrets do not belong here: export them in the shell you submit from.
"""

from __future__ import annotations

from launch.cluster import Cluster


def local() -> Cluster:
    """This machine."""
    return Cluster(kind="local")


def slurm() -> Cluster:
    """The cluster's own defaults, without GPUs."""
    return Cluster()


def gpu() -> Cluster:
    """Whole nodes with eight GPUs."""
    return Cluster(
        gpus_per_node=8,
        cpus_per_task=12,
        time="04:00:00",
        grace=600,  # a step of the paper's setting with its save
        env={"NCCL_DEBUG": "WARN"},
        extra={"exclusive": True},
    )
