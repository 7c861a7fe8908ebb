"""Damage to any file of a checkpoint is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from scope_megatron import outputs
from scope_megatron.checkpoint import folder
from scope_megatron.checkpoint.manifest import MANIFEST, find_damage, write_manifest

FILES = {
    "common.pt": b"common" * 50,
    "__0_0.distcp": bytes(range(256)) * 40,
    "metadata.json": b"{}",
}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    write_manifest(tmp_path)
    return tmp_path


def test_a_whole_checkpoint_passes(directory: Path) -> None:
    assert find_damage(directory) is None


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_one_flipped_bit_is_found(directory: Path, name: str) -> None:
    path = directory / name
    content = bytearray(path.read_bytes())
    for position in range(0, len(content), max(1, len(content) // 25)):
        content[position] ^= 1
        path.write_bytes(content)
        damage = find_damage(directory)
        assert damage is not None and (name in damage or name == MANIFEST)
        content[position] ^= 1
    path.write_bytes(content)
    assert find_damage(directory) is None


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_a_missing_or_truncated_file_is_found(directory: Path, name: str) -> None:
    content = (directory / name).read_bytes()
    (directory / name).write_bytes(content[:-2])
    assert find_damage(directory) is not None
    (directory / name).unlink()
    assert find_damage(directory) == f"{name} is missing"


def test_no_directory(directory: Path) -> None:
    assert find_damage(directory / "nowhere") == "it is not there"


def test_every_bit_of_the_manifest_counts(directory: Path) -> None:
    path = directory / MANIFEST
    content = bytearray(path.read_bytes())
    for bit in range(8 * len(content)):
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        assert find_damage(directory, contents=False) is not None, bit
        content[bit // 8] ^= 1 << bit % 8


def test_an_extra_file_is_found(directory: Path) -> None:
    (directory / "__1_0.distcp").touch()
    assert find_damage(directory) == f"__1_0.distcp is not in {MANIFEST}"


def make_checkpoints(output: Path, scores: dict[int, float | None]) -> None:
    for step, score in scores.items():
        directory = outputs.checkpoint_dir(output, step)
        directory.mkdir(parents=True)
        (directory / "common.pt").write_bytes(b"common")
        write_manifest(directory, rating=score)


def steps_in(output: Path) -> list[int]:
    return [outputs.step_of(path) for path in outputs.checkpoints(output)]


def test_the_best_and_the_newest_are_kept(tmp_path: Path) -> None:
    scores = {10: 0.2, 20: 0.9, 30: 0.9, 40: 0.5, 50: None, 60: 0.1}
    make_checkpoints(tmp_path, scores)
    newest = outputs.checkpoint_dir(tmp_path, 60)
    folder.forget(tmp_path, newest, keep=2, keep_best=2)
    assert steps_in(tmp_path) == [60, 50, 30, 20]
    assert (newest.parent / outputs.BEST).read_text() == "step_00000030\n", "of equals the newer"
    folder.forget(tmp_path, newest, keep=1, keep_best=1)
    assert steps_in(tmp_path) == [60, 30]
    folder.forget(tmp_path, newest, keep=1, keep_best=0)
    assert steps_in(tmp_path) == [60]


def test_a_score_that_comes_later(tmp_path: Path) -> None:
    make_checkpoints(tmp_path, {10: 0.2, 20: 0.3, 30: None})
    newest = outputs.checkpoint_dir(tmp_path, 30)
    folder.set_rating(newest, 0.4)
    assert folder.newest_whole(tmp_path) == (newest, [])
    folder.forget(tmp_path, newest, keep=1, keep_best=2)
    assert steps_in(tmp_path) == [30, 20]


def test_a_run_that_went_back_behind_damage_keeps_its_own_line(tmp_path: Path) -> None:
    make_checkpoints(tmp_path, {10: None, 20: None, 30: 0.9})
    (outputs.checkpoint_dir(tmp_path, 30) / "common.pt").write_bytes(b"Common")
    assert folder.steps_done(tmp_path) == 30, "contents are not read for this"
    found, lines = folder.newest_whole(tmp_path)
    assert found == outputs.checkpoint_dir(tmp_path, 20) and len(lines) == 1
    make_checkpoints(tmp_path, {25: None})
    folder.forget(tmp_path, outputs.checkpoint_dir(tmp_path, 25), keep=2, keep_best=1)
    assert steps_in(tmp_path) == [25, 20], "the damaged one is not the best of anything"
    assert (outputs.checkpoints_dir(tmp_path) / "damaged_step_00000030").is_dir()


def test_what_latest_says_is_compared_with_what_is_there(tmp_path: Path) -> None:
    assert folder.newest_whole(tmp_path) == (None, [])
    make_checkpoints(tmp_path, {3: None, 4: None})
    pointer = outputs.checkpoints_dir(tmp_path) / outputs.LATEST
    pointer.write_text("step_00000004\n")
    newest = outputs.checkpoint_dir(tmp_path, 4)
    assert folder.newest_whole(tmp_path) == (newest, [])
    whole = pointer.read_bytes()
    for bit in range(8 * len(whole)):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        pointer.write_bytes(changed)
        found, lines = folder.newest_whole(tmp_path)
        assert found == newest and len(lines) == 1, bit
    for directory in outputs.checkpoints(tmp_path):
        (directory / MANIFEST).unlink()
    with pytest.raises(ValueError, match="no whole checkpoint is left"):
        folder.newest_whole(tmp_path)
