"""Damage to any file of a checkpoint is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from scope_megatron.train.integrity import MANIFEST, find_damage, write_manifest

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


def test_retention_keeps_the_newest_and_drops_what_latest_went_back_behind(tmp_path: Path) -> None:
    from scope_megatron.train import checkpoint

    root = checkpoint.checkpoints_dir(tmp_path)
    for step in (10, 20, 30, 40):
        (root / f"step_{step:08d}").mkdir(parents=True)
    assert checkpoint.candidates(tmp_path) == [], "nothing was ever finished"
    (root / checkpoint.LATEST).write_text("step_00000030\n")
    assert checkpoint.steps_done(tmp_path) == 30
    checkpoint._forget_others(tmp_path, keep=2)
    assert sorted(path.name for path in root.glob("step_*")) == ["step_00000020", "step_00000030"]
