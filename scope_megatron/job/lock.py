"""One live run per output_dir: a lock that the system releases when its process is gone."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from scope_megatron.outputs import LOCK


@contextmanager
def locked(output_dir: Path, enabled: bool = True) -> Iterator[None]:
    """Hold ``output_dir/run.lock``, which names the holder, while the block runs.

    Raises ValueError naming the other process when a live run holds it. A record lock: it dies
    with the process that took it, is not inherited by forked children, and works over NFS. Where
    the file system knows no locks, none is taken.
    """
    if not enabled:
        yield
        return
    output_dir.mkdir(parents=True, exist_ok=True)
    path = output_dir / LOCK
    with path.open("a+", encoding="utf-8") as file:
        _take(file, output_dir)
        _name_holder(file.fileno())
        yield  # closing the file releases the lock; it must be opened nowhere else in this process


def require_free(output_dir: Path) -> None:
    """Raise ValueError when a live run holds the lock; takes nothing and leaves no trace.

    For the process that starts the ranks, so that a refusal comes before they load anything.
    """
    try:
        with (output_dir / LOCK).open("r+", encoding="utf-8") as file:
            _take(file, output_dir)
    except OSError:
        return  # no lock yet; what else is wrong with the directory is found elsewhere


def _take(file: TextIO, output_dir: Path) -> None:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            file.seek(0)
            raise ValueError(_refusal(output_dir, file.read())) from None


def _name_holder(descriptor: int) -> None:
    holder = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps(holder).encode() + b"\n")
    except OSError:
        pass  # a full disk: the lock holds without its holder's name


def _refusal(output_dir: Path, holder: str) -> str:
    try:
        found = json.loads(holder)
        who = f"process {found['pid']} on {found['host']} (since {found['since']})"
    except (ValueError, KeyError, TypeError):
        who = "another process"
    return (
        f"output_dir: {output_dir} is in use by {who}; wait for it or stop it, or give another "
        "output_dir"
    )
