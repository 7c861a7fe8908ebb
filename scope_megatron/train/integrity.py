"""A checkpoint's manifest: the SHA-256 of every file, so that damage is found before it is loaded.

megatron-core notices a missing or truncated shard, but one flipped bit loads without a word.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

MANIFEST = "manifest.json"


def write_manifest(directory: Path) -> None:
    """Write ``manifest.json``: file name -> bytes and SHA-256 of every other file."""
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(directory.iterdir())
        if path.name != MANIFEST
    }
    (directory / MANIFEST).write_text(json.dumps({"files": files}, indent=1) + "\n")


def find_damage(directory: Path) -> str | None:
    """What is wrong with a checkpoint directory, in a few words; None when it is whole."""
    try:
        files = json.loads((directory / MANIFEST).read_text())["files"]
        expected = {name: (entry["bytes"], entry["sha256"]) for name, entry in files.items()}
    except FileNotFoundError:
        return f"{MANIFEST} is missing" if directory.is_dir() else "it is not there"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} cannot be read"
    for name, (size, digest) in expected.items():
        path = directory / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
        if _sha256(path) != digest:
            return f"{name} has changed since it was written"
    return None if expected else f"{MANIFEST} names no file"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
