"""Saves checkpoints beside the training: a snapshot in the step, the rest in a thread.

A save that fails (disk full, quota, read-only) fails on every rank, is told in one line and ends
no run; the checkpoints before it stay. The thread's collectives have a gloo group of their own.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed.checkpoint.storage import WriteResult

from scope_megatron.checkpoint import folder
from scope_megatron.checkpoint.manifest import Entry, entry_of
from scope_megatron.checkpoint.snapshot import PendingWrite, Snapshots
from scope_megatron.checkpoint.state import SHARDING, TrainingState, state_to_save
from scope_megatron.config import CheckpointConfig
from scope_megatron.outputs import checkpoint_dir, checkpoints_dir
from scope_megatron.parallel.agree import from_all, from_main
from scope_megatron.trace.spans import span

ABANDON_S = 10.0  # an ending run waits so long for a save that it has given up


@dataclass
class _Share:
    """Result of one rank's writing, sent to the others."""

    written: list[WriteResult]
    files: dict[str, Entry]
    error: str | None = None


class Saver:
    """Saves one training state. :meth:`save` and :meth:`wait` are for all ranks together.

    ``saved_step`` is the step of the newest checkpoint that is whole on disk, -1 for none; it is
    the same on all ranks after :meth:`wait`. ``say`` gets a line for every save that failed.
    """

    def __init__(
        self,
        state: TrainingState,
        output_dir: Path,
        settings: CheckpointConfig,
        say: Callable[[str], None],
    ) -> None:
        self.saved_step = -1
        self._state, self._output, self._settings, self._say = state, output_dir, settings, say
        self._group = dist.new_group(backend="gloo")
        self._snapshots = Snapshots()
        self._thread: threading.Thread | None = None
        self._outcome: tuple[int, str | None] | None = None  # (step, error) of a save that is over
        self._given_up = threading.Event()

    def save(
        self,
        step: int,
        progress: dict[str, Any],
        rating: float | None = None,
        background: bool | None = None,
    ) -> None:
        """Save the state after ``step`` steps; waits for the save before it.

        ``rating`` (Avg@k) counts for checkpoint.keep_best. ``background`` None: as
        checkpoint.asynchronous says. Returns after the snapshot, or when all is done.
        """
        self.wait()
        background = self._settings.asynchronous if background is None else background
        error = from_main(lambda: self._make_room(step), self._group)
        if error is not None:
            self._outcome = (step, error)
            self._report()
            return
        final = checkpoint_dir(self._output, step)
        temporary = final.with_name(f".tmp_{final.name}")
        state = state_to_save(self._state, step, progress)
        with span("snapshot"):
            pending = self._snapshots.take(state, temporary, SHARDING, copied=background)
        if background:
            self._thread = threading.Thread(
                target=self._write, args=(pending, final, step, rating), daemon=True
            )
            self._thread.start()
        else:
            self._write(pending, final, step, rating)
            self._report()

    def rate(self, rating: float) -> None:
        """Give the newest checkpoint the rating of an evaluation that came after it."""
        if not self._state.topology.is_main:
            return
        try:
            newest = checkpoint_dir(self._output, self.saved_step)
            folder.set_rating(newest, rating)
            folder.forget(self._output, newest, self._settings.keep, self._settings.keep_best)
        except (OSError, ValueError) as error:
            self._say(f"the rating of the last checkpoint was not recorded: {_reason(error)}")

    def poll(self) -> None:
        """Tell of a save that has failed in the meantime; never waits."""
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Until no save is in flight; tells of one that failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._report()

    def close(self) -> None:
        """Give up a save in flight, as the run ends by an error: it is whole or not there."""
        self._given_up.set()
        if self._thread is not None:
            self._thread.join(ABANDON_S)

    def _report(self) -> None:
        if self._outcome is None:
            return
        step, error = self._outcome
        self._outcome = None
        if error is None:
            self.saved_step = step
        else:
            self._say(f"the checkpoint of step {step} was not saved: {error}")

    def _write(self, pending: PendingWrite, final: Path, step: int, rating: float | None) -> None:
        """Write, and commit when every rank has written; leaves the outcome, on all ranks."""
        try:
            with span(f"write {final.name}", "checkpoint"):
                error = self._write_together(pending, final, rating)
        except Exception as broken:  # a rank is gone: nothing can be agreed on any more
            error = f"{type(broken).__name__}: {broken}"
        self._outcome = (step, error)

    def _write_together(
        self, pending: PendingWrite, final: Path, rating: float | None
    ) -> str | None:
        pending.plan(self._group)
        shares = from_all(self._share(pending), self._group)
        error = next((share.error for share in shares if share.error is not None), None)
        if self._state.topology.is_main:
            if error is None:
                error = self._commit(pending, final, shares, rating)
            if error is not None:
                shutil.rmtree(pending.directory, ignore_errors=True)
                error = f"{error}; {self._room(pending)}"
        return from_main(lambda: error, self._group)

    def _share(self, pending: PendingWrite) -> _Share:
        try:
            written = pending.write()
            if self._given_up.is_set():
                return _Share([], {}, "the run ended")
            return _Share(written, {n: entry_of(pending.directory / n) for n in pending.files})
        except Exception as error:
            return _Share([], {}, _reason(error))

    def _commit(
        self, pending: PendingWrite, final: Path, shares: list[_Share], rating: float | None
    ) -> str | None:
        """Rank 0's part after all have written. Returns what went wrong."""
        try:
            pending.finish([share.written for share in shares])
            known = {name: entry for share in shares for name, entry in share.files.items()}
            folder.commit(pending.directory, final, known, rating)
        except Exception as error:
            return _reason(error)
        try:
            folder.forget(self._output, final, self._settings.keep, self._settings.keep_best)
        except OSError as error:  # the checkpoint is whole: only old ones take up room
            self._say(f"old checkpoints were not removed: {_reason(error)}")
        return None

    def _make_room(self, step: int) -> str | None:
        try:
            folder.make_room(self._output, step)
        except OSError as error:
            return f"{_reason(error)}; {checkpoints_dir(self._output)} cannot be written to"
        return None

    def _room(self, pending: PendingWrite) -> str:
        root = checkpoints_dir(self._output)
        try:
            free = shutil.disk_usage(root).free
        except OSError as error:
            return f"{root} cannot be reached ({error.strerror})"
        return (
            f"it needs {pending.bytes / 2**20:,.1f} MiB and {root} has {free / 2**20:,.1f} MiB "
            "free; earlier checkpoints are kept"
        )


def _reason(error: BaseException) -> str:
    """The system's words for an error, also where a library hid them behind its own."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno is not None:
            name = errno.errorcode.get(cause.errno, str(cause.errno))
            return f"{os.strerror(cause.errno)} ({name})"
        cause = cause.__cause__ or cause.__context__
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
