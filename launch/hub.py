"""What jobs that use Hub names are told: where the caches are, and how the hub is reached.

The names themselves were fetched, and put at their commits, when the configuration was read on
this machine. A job that sees the same cache asks the hub for nothing; one that does not fetches
those commits, once per node. Tokens are not passed here: the environment of the submitting shell,
or HF_HOME/token, has them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from launch.cluster import Cluster
from scope_megatron.config import Config
from scope_megatron.config.names import pinned
from scope_megatron.hub import cache_directory

PATHS = ("HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "SCOPE_MEGATRON_CACHE")
HUB_SETTINGS = (
    *("HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"),
    *("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_DISABLE_XET"),
)


def with_caches(cluster: Cluster, configs: Iterable[Config]) -> Cluster:
    """The cluster with this shell's hub settings in its environment, and, for a container, the
    caches mounted where they lie. What the cluster already sets stays."""
    if not any(pinned(config) for config in configs):
        return cluster
    given = {name: os.environ[name] for name in HUB_SETTINGS if os.environ.get(name)}
    paths = {
        name: str(Path(os.environ[name]).expanduser().absolute())
        for name in PATHS
        if os.environ.get(name)
    }
    paths.setdefault("HF_HUB_CACHE", str(cache_directory()))
    environment = given | paths | cluster.env
    kept = [environment[name] for name in PATHS if name in environment]
    mounts = [f"{path}:{path}" for path in dict.fromkeys(kept)] if cluster.container else []
    return replace(cluster, env=environment, mounts=[*cluster.mounts, *mounts])
