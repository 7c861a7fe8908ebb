"""Files and directories that are complete or absent, and checksums.

Both are filled under another name, synced and renamed, so that a kill leaves the old content or
the new one.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path


def is_occupied(path: Path) -> bool:
    """True when writing to ``path`` would replace something."""
    return path.exists() and (not path.is_dir() or any(path.iterdir()))


def temporary_path(final: Path) -> Path:
    """Path beside ``final`` where its content is gathered until it is complete."""
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


def write_atomically(
    path: Path, content: str | bytes | Iterable[bytes], temporary: Path | None = None
) -> None:
    """Give a file a new content, whole or in pieces; returns when it is on the disk.

    ``temporary``: another place on the same file system to gather it in, where nothing else may
    stand beside ``path``. Raises OSError, and then leaves ``path`` as it was.
    """
    temporary = temporary or temporary_path(path)
    try:
        with temporary.open("wb") as file:
            if isinstance(content, str | bytes):
                file.write(content.encode() if isinstance(content, str) else content)
            else:
                file.writelines(content)
        sync_to_disk(temporary)
    except OSError:
        if temporary.is_file():
            temporary.unlink()
        raise
    os.replace(temporary, path)
    sync_to_disk(path.parent)


def sync_to_disk(path: Path) -> None:
    """fsync of a file, or of a directory's entries."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """The file's SHA-256 in hexadecimal digits; its content is read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
