"""A directory that is complete or absent: filled under another name, synced and renamed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def is_occupied(path: Path) -> bool:
    """True when writing to ``path`` would replace something."""
    return path.exists() and (not path.is_dir() or any(path.iterdir()))


def temporary_path(final: Path) -> Path:
    """Where the content of ``final`` is gathered before it is complete."""
    final = final.absolute()
    return final.with_name(f".{final.name}.tmp")


def make_temporary(final: Path) -> Path:
    """Create that directory, empty: what an interrupted run left there is removed."""
    temporary = temporary_path(final)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    return temporary


def commit_directory(temporary: Path, final: Path) -> None:
    """Sync ``temporary``'s files to disk and rename it to ``final``, replacing what is there."""
    for path in [*temporary.rglob("*"), temporary]:
        sync_to_disk(path)
    replaced = final.with_name(f".{final.name}.old")
    shutil.rmtree(replaced, ignore_errors=True)
    if final.exists():
        final.rename(replaced)
    temporary.rename(final)
    sync_to_disk(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def sync_to_disk(path: Path) -> None:
    """fsync of a file, or of a directory's entries."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
