"""One file per site: the places where its runs can execute, each a small named function."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable

from launch.cluster import Cluster


def factories(site: str) -> dict[str, Callable[[], Cluster]]:
    """The public functions of launch/sites/SITE.py, by name. ValueError for an unknown site."""
    known = sorted(module.name for module in pkgutil.iter_modules(__path__))
    if site not in known:
        raise ValueError(f"--site: {site!r} is none of {', '.join(known)} (files in launch/sites)")
    module = importlib.import_module(f"{__name__}.{site}")
    return {
        name: function
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__ and not name.startswith("_")
    }


def cluster(site: str, name: str) -> Cluster:
    """Call function NAME of that site's file. ValueError for an unknown name."""
    found = factories(site)
    if name not in found:
        close = difflib.get_close_matches(name, found, 1)
        hint = f"; did you mean {close[0]}?" if close else f"; it has {', '.join(found)}"
        raise ValueError(f"--executor: {name!r} is not in launch/sites/{site}.py{hint}")
    return found[name]()
