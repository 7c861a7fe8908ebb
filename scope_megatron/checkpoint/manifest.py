"""A checkpoint's manifest: the SHA-256 of every file, so that damage is found before it is loaded.

megatron-core notices a missing or truncated shard, but one flipped bit loads without a word. The
manifest has a checksum of its own, and nothing may stand in the directory that it does not name.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from scope_megatron.disk import sha256

MANIFEST = "manifest.json"
Entry = dict[str, int | str]


def entry_of(path: Path) -> Entry:
    """Entry of one file in a manifest: its ``bytes`` and ``sha256``."""
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def write_manifest(
    directory: Path, known: dict[str, Entry] | None = None, rating: float | None = None
) -> None:
    """Write ``manifest.json``: every other file's size and SHA-256, and the checkpoint's rating.

    ``known``: entries made while the files were written, which need not be read again.
    ``rating`` is the evaluation's Avg@k, where there was one.
    """
    known = known or {}
    names = sorted(path.name for path in directory.iterdir() if path.name != MANIFEST)
    files = {name: known.get(name) or entry_of(directory / name) for name in names}
    (directory / MANIFEST).write_text(_encode(files, rating))


def read_rating(directory: Path) -> float | None:
    """Avg@k of a checkpoint; None where nothing was evaluated or the manifest is damaged."""
    try:
        rating: float | None = _read(directory)["score"]
    except (OSError, ValueError):
        return None
    return rating


def with_rating(directory: Path, rating: float) -> str:
    """The text of the manifest with another rating. Raises ValueError when it is damaged."""
    return _encode(_read(directory)["files"], rating)


def find_damage(directory: Path, contents: bool = True) -> str | None:
    """Damage of a checkpoint directory, in a few words; None when it is whole.

    Without ``contents`` only names and sizes are looked at.
    """
    try:
        files = _read(directory)["files"]
    except FileNotFoundError:
        return f"{MANIFEST} is missing" if directory.is_dir() else "it is not there"
    except ValueError as error:
        return str(error)
    except OSError as error:
        return f"{MANIFEST} cannot be read ({error.strerror})"
    for path in sorted(directory.iterdir()):
        if path.name not in files and path.name != MANIFEST:
            return f"{path.name} is not in {MANIFEST}"
    for name, expected in files.items():
        try:
            if damage := _file_damage(directory / name, expected, contents):
                return damage
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return None if files else f"{MANIFEST} names no file"


def _file_damage(path: Path, expected: Entry, contents: bool) -> str | None:
    if not path.is_file():
        return f"{path.name} is missing"
    if (size := path.stat().st_size) != expected["bytes"]:
        return f"{path.name} has {size} bytes instead of {expected['bytes']}"
    if contents and sha256(path) != expected["sha256"]:
        return f"{path.name} has changed since it was written"
    return None


def _read(directory: Path) -> dict[str, Any]:
    """The manifest. Raises ValueError unless it is, to the byte, what was written."""
    raw = (directory / MANIFEST).read_bytes()
    try:
        content = json.loads(raw)
        written = _encode(content["files"], content["score"]).encode()
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{MANIFEST} cannot be read") from None
    if raw != written:
        raise ValueError(f"{MANIFEST} has changed since it was written")
    return dict(content)


def _encode(files: dict[str, Entry], rating: float | None) -> str:
    content: dict[str, Any] = {"files": files, "score": rating}
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return json.dumps({"sha256": digest, **content}, indent=1) + "\n"
