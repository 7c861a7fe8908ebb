"""The directory of a run's checkpoints: what is in it, how one enters it, which ones leave it.

``output_dir/checkpoints`` holds one directory ``step_00000040`` per checkpoint, each with a
manifest, and the text files ``latest`` and ``best`` that name two of them. The manifests decide
what is whole; the text files are for people, and ``latest`` is compared with what is there.
Everything here is done by one rank.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from scope_megatron.checkpoint.manifest import (
    MANIFEST,
    Entry,
    find_damage,
    read_rating,
    with_rating,
    write_manifest,
)
from scope_megatron.disk import commit_directory, temporary_path, write_atomically
from scope_megatron.outputs import (
    BEST,
    LATEST,
    checkpoint_name,
    checkpoints,
    checkpoints_dir,
    is_checkpoint_name,
    latest_pointer,
    step_of,
)


def pointer_damage(output_dir: Path) -> str | None:
    """Damage of the pointer ``latest``: unreadable, or naming a checkpoint that is gone."""
    pointer = latest_pointer(output_dir)
    found = checkpoints(output_dir)
    if not pointer.exists():
        return None  # killed before it was written for the first time
    content = pointer.read_bytes()
    name = content.decode(errors="replace").strip()
    if content != name.encode() + b"\n" or not is_checkpoint_name(name):
        return f"{pointer} is damaged"
    if not (pointer.parent / name).is_dir():
        return f"{pointer} names {name}, which is not there"
    if name != found[0].name:  # killed between the two: the newer one is judged by its manifest
        return f"{pointer} names {name}, but {found[0].name} is there too"
    return None


def newest_whole(output_dir: Path) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint, and a line on everything that had to be stepped over.

    Raises ValueError when there are traces of checkpoints and none of them is whole.
    """
    wrong = [line] if (line := pointer_damage(output_dir)) else []
    for directory in checkpoints(output_dir):
        damage = find_damage(directory)
        if damage is None:
            return directory, wrong
        wrong.append(f"{directory} is damaged: {damage}")
    if wrong:
        raise ValueError(f"resume: no whole checkpoint is left; {'; '.join(wrong)}")
    return None, []


def steps_done(output_dir: Path) -> int:
    """Steps of the newest checkpoint whose files are all there (contents unread), or 0."""
    whole = (d for d in checkpoints(output_dir) if find_damage(d, contents=False) is None)
    return next((step_of(directory) for directory in whole), 0)


def make_room(output_dir: Path, step: int) -> Path:
    """An empty directory to gather the checkpoint in; what killed saves left is removed."""
    root = checkpoints_dir(output_dir)
    root.mkdir(parents=True, exist_ok=True)
    for unfinished in root.glob(".*step_*"):
        shutil.rmtree(unfinished, ignore_errors=True)
    temporary = root / f".tmp_{checkpoint_name(step)}"
    temporary.mkdir()
    return temporary


def commit(
    temporary: Path,
    final: Path,
    known: dict[str, Entry],
    rating: float | None,
) -> None:
    """Make a filled directory a checkpoint: manifest, fsync, rename, then ``latest``."""
    write_manifest(temporary, known, rating)
    commit_directory(temporary, final)
    write_atomically(final.parent / LATEST, f"{final.name}\n")


def set_rating(directory: Path, rating: float) -> None:
    """Give a checkpoint that was saved before its evaluation the evaluation's Avg@k."""
    outside = temporary_path(directory)  # in the checkpoint it would be damage
    write_atomically(directory / MANIFEST, with_rating(directory, rating), outside)


def forget(output_dir: Path, newest: Path, keep: int, keep_best: int) -> None:
    """Remove all but the newest ``keep`` checkpoints and the ``keep_best`` with the highest rating.

    What is newer than ``newest`` was damaged, and the run went back behind it: it is renamed to
    ``damaged_step_...`` so that it is never taken for one of the newest.
    """
    kept = []
    for directory in checkpoints(output_dir):
        if step_of(directory) > step_of(newest):
            _set_aside(directory)
        else:
            kept.append(directory)
    ratings = {d: rating for d in kept if (rating := read_rating(d)) is not None}
    ranked = sorted(ratings, key=lambda d: (ratings[d], step_of(d)), reverse=True)
    if ranked and keep_best:
        write_atomically(newest.parent / BEST, f"{ranked[0].name}\n")
    for directory in kept:
        if directory not in (newest, *kept[:keep], *ranked[:keep_best]):
            going = directory.with_name(f".old_{directory.name}")
            directory.rename(going)  # half removed, it must not look like a checkpoint
            shutil.rmtree(going, ignore_errors=True)


def _set_aside(directory: Path) -> None:
    aside = directory.with_name(f"damaged_{directory.name}")
    shutil.rmtree(aside, ignore_errors=True)
    directory.rename(aside)
