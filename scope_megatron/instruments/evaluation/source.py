"""Source of a model (``--model``): a Hugging Face directory, a Megatron checkpoint, or a run with
several.

Read without torch. A checkpoint holds neither config.json nor a tokenizer when training wrote it;
its base is the Hugging Face directory that has them.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scope_megatron.checkpoint.manifest import MANIFEST, find_damage
from scope_megatron.config import ConfigError
from scope_megatron.hub import HubError, fetch, hub_name
from scope_megatron.outputs import HF, checkpoints, checkpoints_dir

INDEX = ".metadata"  # of torch's distributed checkpoints
_PLACES, _BYTES = 16, 64 * 2**10  # of a weight file that its fingerprint reads


@dataclass(frozen=True)
class ModelSource:
    """Directories of the weights, of config.json and of the tokenizer."""

    weights: Path
    base: Path

    @property
    def is_checkpoint(self) -> bool:
        """Whether the weights are Megatron's and must be converted for vLLM."""
        return (self.weights / INDEX).is_file()

    def fingerprint(self) -> str:
        """SHA-256 that tells one model from another, wherever it was copied to.

        config.json whole; of every file of weights its size and 64 KiB at 16 places, since all
        tensors change in training and reading a large model takes minutes.
        """
        digest = hashlib.sha256((self.base / "config.json").read_bytes())
        if (self.weights / MANIFEST).is_file():  # it has the checksums of all files
            manifest = json.loads((self.weights / MANIFEST).read_bytes())
            digest.update(json.dumps(manifest["files"], sort_keys=True).encode())
            return digest.hexdigest()
        patterns = ("*.distcp", "common.pt") if self.is_checkpoint else ("*.safetensors", "*.bin")
        for path in sorted(file for pattern in patterns for file in self.weights.glob(pattern)):
            size = path.stat().st_size
            digest.update(f"{path.name} {size}\n".encode())
            with path.open("rb") as file:
                for place in range(_PLACES):
                    file.seek(max(0, size - _BYTES) * place // (_PLACES - 1))
                    digest.update(file.read(_BYTES))
        return digest.hexdigest()


def find_model(text: str, base: Path | None, option: str = "--model") -> ModelSource:
    """The model that a user's text names. Raises ConfigError naming ``option``.

    A run's output_dir stands for its newest whole checkpoint.
    """
    given = _fetched(text, option)
    if not given.is_dir():
        what = "is a file" if given.exists() else "does not exist"
        raise ConfigError(
            f"{option}: {text} {what}; give a Hugging Face directory, a checkpoint, or a run's "
            "output_dir"
        )
    weights = given
    if not (given / INDEX).is_file() and checkpoints_dir(given).is_dir():
        weights = _newest_checkpoint(given, option)
    if not (weights / INDEX).is_file():
        if not (weights / "config.json").is_file():
            raise ConfigError(
                f"{option}: {text} has neither config.json (a Hugging Face directory) nor "
                f"{INDEX} (a checkpoint) nor checkpoints; give one that has"
            )
        if base is not None:
            raise ConfigError(
                f"--base: is for a Megatron checkpoint, but {text} is a Hugging Face directory; "
                "remove it"
            )
        return ModelSource(weights, weights)
    return ModelSource(weights, _base_of(weights, base))


def _fetched(text: str, option: str) -> Path:
    """The path, or the snapshot of a Hub name. Raises ConfigError naming ``option``."""
    name = hub_name(text)
    if name is None:
        return Path(text).expanduser()
    try:
        return fetch(name, setting=option)
    except HubError as error:
        raise ConfigError(f"{option}: {error}") from None


def _newest_checkpoint(run: Path, option: str) -> Path:
    """The newest one whose files are all there; the conversion compares their checksums."""
    found = checkpoints(run)
    for directory in found:
        if find_damage(directory, contents=False) is None:
            return directory
    if found:
        damage = find_damage(found[0], contents=False)
        raise ConfigError(
            f"{option}: {run} holds no whole checkpoint ({found[0].name}: {damage}); give another "
            "model"
        )
    raise ConfigError(f"{option}: {run} holds no checkpoint yet; give another model")


def _base_of(checkpoint: Path, given: Path | None) -> Path:
    """--base, the checkpoint's own config.json, its run's export, or the run's model.student."""
    if given is not None:
        if not (given / "config.json").is_file():
            raise ConfigError(
                f"--base: {given} has no config.json; give the Hugging Face directory that the "
                "training started from"
            )
        return given
    exported = checkpoint.absolute().parents[1] / HF
    for directory in (checkpoint, exported):
        if (directory / "config.json").is_file():
            return directory
    student = _trained_from(checkpoint)
    if student is None or not (student / "config.json").is_file():
        found = f" (it was trained from {student}, not found from here)" if student else ""
        raise ConfigError(
            f"--base: is missing but the checkpoint {checkpoint} has no config.json{found}; give "
            "the Hugging Face directory that the training started from"
        )
    return student


def _trained_from(checkpoint: Path) -> Path | None:
    """model.student in the settings that training keeps in a checkpoint, if they can be read."""
    import torch
    import yaml

    try:
        common = torch.load(checkpoint / "common.pt", map_location="cpu", weights_only=True)
        values = yaml.safe_load(common["progress"]["config"])
        return _fetched(values["model"]["student"], "--base")
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, yaml.YAMLError):
        return None
    except Exception as error:  # pickle.UnpicklingError: more in the file than plain values
        if type(error).__name__ != "UnpicklingError":
            raise
        return None


def read_context(base: Path) -> int | None:
    """max_position_embeddings of a model of any architecture; None where config.json names none."""
    found = _config(base).get("max_position_embeddings")
    return found if isinstance(found, int) and not isinstance(found, bool) else None


def architecture(base: Path) -> str | None:
    """The first of config.json's architectures."""
    named = _config(base).get("architectures")
    return str(named[0]) if isinstance(named, list) and named else None


def _config(base: Path) -> dict[str, Any]:
    """config.json, or nothing where it cannot be read: the model's own rules say so."""
    try:
        values = json.loads((base / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
