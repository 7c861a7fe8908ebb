"""Workspace of a conversion: a temporary directory from which an interrupted one can go on.

``.NAME.tmp`` beside the output holds ``files`` (which becomes the output) and ``progress.json``:
what is converted with which options, and the bytes and SHA-256 of every finished file. A file is
recorded only when it is on the disk, so one without a record is half-written, and is removed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from scope_megatron.disk import commit_directory, sha256, temporary_path, write_atomically

_PROGRESS = "progress.json"


class HashedFile:
    """A file written from its start to its end, and its checksum so far."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha256, self.size = hashlib.sha256(), 0
        self.notes: Any = None  # JSON that is kept with the record of the file
        self.failure: OSError | None = None  # what torch.save reports as something else

    def write(self, data: Any) -> int:
        view = memoryview(data)
        try:
            self._file.write(view)
        except OSError as error:
            self.failure = error
            raise
        self.sha256.update(view)
        self.size += view.nbytes
        return view.nbytes

    def flush(self) -> None:
        """torch.save asks for it."""

    def tell(self) -> int:
        return self.size


class Workspace:
    """The temporary directory of one output, found again or created."""

    def __init__(self, final: Path, identity: dict[str, Any]) -> None:
        """``identity``: JSON of the source and the options; another one starts over.

        Raises ValueError while another process writes the same output.
        """
        self.final = final.absolute()
        self.root = temporary_path(final)
        self.files = self.root / "files"
        self.restarted = False  # an unfinished conversion of something else was thrown away
        self._identity = json.loads(json.dumps(identity))
        self.files.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.root, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise ValueError(f"{final}: another conversion writes there; wait for it") from None
        self._finished = self._load()
        self._remove_unrecorded()

    def _load(self) -> dict[str, Any]:
        try:
            stored = json.loads((self.root / _PROGRESS).read_text())
            identity, finished = stored["identity"], stored["files"]
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError):
            self.restarted = True
            return {}
        if identity != self._identity:
            self.restarted = bool(finished)
            return {}
        return {name: entry for name, entry in finished.items() if self._is_whole(name, entry)}

    def _is_whole(self, name: str, entry: dict[str, Any]) -> bool:
        path = self.files / name
        if not path.is_file() or path.stat().st_size != entry["bytes"]:
            return False
        return sha256(path) == str(entry["sha256"])

    def _remove_unrecorded(self) -> None:
        for path in self.files.iterdir():
            if path.name not in self._finished:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    @property
    def finished_bytes(self) -> int:
        return sum(entry["bytes"] for entry in self._finished.values())

    def finished(self, name: str) -> dict[str, Any] | None:
        """The record of a file of an earlier attempt: ``bytes``, ``sha256``, ``notes``."""
        return self._finished.get(name)

    @contextmanager
    def create(self, name: str) -> Iterator[HashedFile]:
        """Write a file; when the block ends it is synced and recorded, when it fails removed."""
        path = self.files / name
        hashed: HashedFile | None = None
        try:
            with path.open("wb") as file:
                hashed = HashedFile(file)
                yield hashed
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            path.unlink(missing_ok=True)
            if hashed is not None and hashed.failure is not None:
                raise hashed.failure from None
            raise
        self._finished[name] = {
            "bytes": hashed.size,
            "sha256": hashed.sha256.hexdigest(),
            "notes": hashed.notes,
        }
        self._store()

    def _store(self) -> None:
        content = {"identity": self._identity, "files": self._finished}
        write_atomically(self.root / _PROGRESS, json.dumps(content))

    def commit(self) -> None:
        """Give the files the output's name and forget the progress."""
        commit_directory(self.files, self.final)
        self.discard()

    def discard(self) -> None:
        """Remove everything that is not the output."""
        shutil.rmtree(self.root, ignore_errors=True)
        self.close()

    def close(self) -> None:
        """Let another process in; what is finished stays."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
