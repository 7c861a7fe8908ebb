"""Models and data sets by their Hub name: `Qwen/Qwen2.5-1.5B`, `Qwen/Qwen2.5-1.5B@main`.

names    what counts as a name, its revision, the folder in the hub's cache that stands for it
fetch    a name -> the folder of its snapshot: from the cache, or fetched once per node

Everything beyond these two files sees folders only. No torch, and huggingface_hub is imported
only where a name is looked up: settings that name folders are checked without it.
"""

from __future__ import annotations

from scope_megatron.hub.fetch import HubError, fetch
from scope_megatron.hub.names import (
    HubName,
    cache_directory,
    hub_name,
    is_commit,
    portable,
    shown_path,
)

__all__ = [
    "HubError",
    "HubName",
    "cache_directory",
    "fetch",
    "hub_name",
    "is_commit",
    "portable",
    "shown_path",
]
