"""A file is its old content or its new one; a run's files have the names that are documented."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path

import pytest

from scope_megatron import disk, outputs


def test_content_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "latest"
    for content, read in (
        ("one\n", b"one\n"),
        (b"two\xff", b"two\xff"),
        (iter([b"3\n", b"4"]), b"3\n4"),
    ):
        disk.write_atomically(path, content)
        assert path.read_bytes() == read
    assert list(tmp_path.iterdir()) == [path]


def test_failed_write_keeps_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "latest"
    disk.write_atomically(path, "old")

    def full(_: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(disk, "sync_to_disk", full)
    with pytest.raises(OSError, match="No space"):
        disk.write_atomically(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_temporary_file_stands_where_it_is_told_to(tmp_path: Path) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    inside.mkdir()
    outside.mkdir()  # a directory is in the way: the write fails there, not beside its target
    with pytest.raises(IsADirectoryError):
        disk.write_atomically(inside / "file", "content", outside)
    disk.write_atomically(inside / "file", "content", outside / "file")
    assert [path.name for path in inside.iterdir()] == ["file"] and not any(outside.iterdir())


def test_checksum_is_sha_256(tmp_path: Path) -> None:
    path = tmp_path / "file"
    content = bytes(range(256)) * 5000
    path.write_bytes(content)
    assert disk.sha256(path) == hashlib.sha256(content).hexdigest()


def test_checkpoints_are_found_by_name_newest_first(tmp_path: Path) -> None:
    for name in ("step_00000002", "step_00000010", "step_2", "damaged_step_00000011", ".tmp_step"):
        (outputs.checkpoints_dir(tmp_path) / name).mkdir(parents=True)
    found = outputs.checkpoints(tmp_path)
    assert [outputs.step_of(path) for path in found] == [10, 2]
    assert found[0] == outputs.checkpoint_dir(tmp_path, 10)
    assert outputs.checkpoints(tmp_path / "absent") == []
