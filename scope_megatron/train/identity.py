"""What must not change between the parts of one run, and between its ranks."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from scope_megatron.config import Config
from scope_megatron.config.sections.model import EVERY_ROW, teacher_setting
from scope_megatron.data.dataset import PromptDataset
from scope_megatron.data.tokenizer import Tokenizer
from scope_megatron.hub.names import name_of_snapshot
from scope_megatron.parallel.agree import from_all
from scope_megatron.remote.messages import SamplerHello

MADE_OF = (
    "made of"  # the parts of data.train: they explain a difference, and are none by themselves
)

_LAST_BYTES = 2**20


def of_run(config: Config, data: PromptDataset, tokenizer: Tokenizer) -> dict[str, Any]:
    """The run's identity, saved with every checkpoint.

    A model has a part in it when it was given by a Hub name: NAME@COMMIT. One of several teachers
    always has: its Hub name, or a digest of its weights.
    """
    paths = {"model.student": config.model.student}
    paths |= {teacher_setting(tag): entry.path for tag, entry in config.teachers.items()}
    names: dict[str, Any] = {key: name_of_snapshot(path) for key, path in paths.items()}
    for tag, entry in config.teachers.items():
        key = teacher_setting(tag)
        if tag != EVERY_ROW and names[key] is None:
            names[key] = weights_digest(entry.path)
    weights = [source.weight for source in config.data.train]
    return {
        "seed": config.seed,
        "data.train": data.fingerprint(),
        "model.tokenizer": tokenizer.token_map_fingerprint(),
        "weights": weights if any(weights) else None,
        **{key: str(name) for key, name in names.items() if name is not None},
        MADE_OF: data.description,
    }


def require_same(before: dict[str, Any], now: dict[str, Any], directory: Path) -> None:
    """Raise ValueError naming what a checkpoint in ``directory`` has otherwise.

    A checkpoint written by an older version lacks some parts: those are taken as equal.
    """
    for key, value in before.items():
        if key == MADE_OF or key not in now or now[key] == value:
            continue
        setting = "data.train" if key == "weights" else key
        what = f" ({difference})" if (difference := _difference(key, before, now)) else ""
        fix = " (or use another output_dir)"
        if _is_model(key) and "@" in str(value):
            fix = f": {key}={value}"
        raise ValueError(
            f"{setting}: differs from the run that wrote {directory}{what}; a resumed run needs "
            f"the same one{fix}"
        )


def require_agreement(parts: dict[str, str]) -> None:
    """Raise ValueError, on all ranks together, unless ``parts`` are equal on all (collective).

    ``parts``: by setting, a digest or name of what this rank found on its own machine.
    """
    gathered = from_all((os.uname().nodename, parts))
    first_node, first = gathered[0]
    for rank, (node, theirs) in enumerate(gathered):
        for key, value in first.items():
            if theirs.get(key) != value:
                raise ValueError(
                    f"{key}: rank {rank} on {node} found another one than rank 0 on {first_node}; "
                    "give all nodes the same files, or a Hub name at a commit"
                )


def require_found_alike(parts: dict[str, str], hellos: Iterable[SamplerHello]) -> None:
    """Raise ValueError unless every sampling rank found the ``parts`` that this rank did."""
    for hello in hellos:
        for key, value in parts.items():
            if hello.found.get(key) != value:
                raise ValueError(
                    f"{key}: sampling rank {hello.rank} on {hello.node} found another one than "
                    f"rank 0 on {os.uname().nodename}; give all nodes the same files, or a Hub "
                    "name at a commit"
                )


def _difference(key: str, before: dict[str, Any], now: dict[str, Any]) -> str | None:
    """In which part two runs differ, as far as it is known."""
    if key == "weights" or _is_model(key):
        return f"is {_shown(now[key])}, was {_shown(before[key])}"
    if key != "data.train" or MADE_OF not in before:
        return None
    old, new = before[MADE_OF], now[MADE_OF]
    for part in {**new, **old}:
        if old.get(part) != new.get(part):
            place = part.rpartition("set ")[2]
            of = f" {new.get(f'set {place}', '')}" if part.startswith("contents of set") else ""
            return f"{part}{of} is {_shown(new.get(part))}, was {_shown(old.get(part))}"
    return "of equal sources: the libraries that tokenise are other versions"


def weights_digest(directory: Path) -> str:
    """SHA-256 of a model directory's config.json, and of each weight file's name, size and last
    bytes: training leaves no part of a model as it was, so these tell two apart."""
    digest = hashlib.sha256((directory / "config.json").read_bytes())
    for path in sorted(directory.glob("*.safetensors")):
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _LAST_BYTES))
            digest.update(f"{path.name}\t{size}\n".encode() + file.read())
    return digest.hexdigest()


def _is_model(key: str) -> bool:
    return key.startswith(("model.student", "model.teacher"))


def _shown(value: Any) -> str:
    """A value in few characters: a digest by its start."""
    text = value if isinstance(value, str) else json.dumps(value)
    if len(text) in (40, 64) and all(c in "0123456789abcdef" for c in text):
        return text[:12]
    return text if len(text) <= 80 else f"{text[:77]}..."
