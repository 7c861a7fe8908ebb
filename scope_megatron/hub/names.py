"""Hub names: which texts are names, and which folder of the hub's cache belongs to one."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["model", "dataset"]

# ORGANISATION/NAME[@REVISION]; a revision is a branch, a tag or a commit.
_WORD = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
_NAME = re.compile(rf"({_WORD}/{_WORD})(?:@([A-Za-z0-9][\w./-]*))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_FILES = (".jsonl", ".parquet", ".model", ".json", ".csv", ".yaml")  # a slip in a path, no name


@dataclass(frozen=True)
class HubName:
    """A repository of the hub at a revision."""

    repo: str  # ORGANISATION/NAME
    revision: str = "main"

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}"

    def at(self, revision: str) -> HubName:
        return HubName(self.repo, revision)

    def storage(self, kind: Kind) -> Path:
        """The repository's folder in the hub's cache: blobs, refs, snapshots."""
        return cache_directory() / f"{kind}s--{self.repo.replace('/', '--')}"


def is_commit(revision: str) -> bool:
    """Whether the revision is a whole commit hash, which never moves."""
    return _COMMIT.fullmatch(revision) is not None


def hub_name(text: str | Path) -> HubName | None:
    """The Hub name that ``text`` is, None for a path.

    What exists on this machine is a path, whatever it looks like; so is what is written like a
    path (absolute, from ``.`` or ``~``, deeper than one folder) or ends like a file.
    """
    found = _NAME.fullmatch(str(text))
    if found is None or found[1].endswith(_FILES) or Path(text).exists():
        return None
    return HubName(found[1], found[2] or "main")


def cache_directory() -> Path:
    """Where huggingface_hub keeps what it fetched: HF_HUB_CACHE, or HF_HOME/hub."""
    environment = os.environ
    default = Path(environment.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    home = Path(environment.get("HF_HOME") or default)
    chosen = environment.get("HF_HUB_CACHE") or environment.get("HUGGINGFACE_HUB_CACHE")
    return Path(os.path.expandvars(Path(chosen or home / "hub").expanduser())).absolute()


def name_of_snapshot(path: Path) -> HubName | None:
    """The name at the commit whose snapshot in this machine's cache is ``path``."""
    try:
        storage, *rest = path.relative_to(cache_directory()).parts
    except ValueError:
        return None
    kind, _, repo = storage.partition("--")
    if kind not in ("models", "datasets") or len(rest) != 2 or rest[0] != "snapshots":
        return None
    return HubName(repo.replace("--", "/", 1), rest[1])


def portable(path: Path) -> str:
    """How a path is written down for another machine: a snapshot as NAME@COMMIT."""
    name = name_of_snapshot(path)
    return str(name or path)


def shown_path(path: Path | None) -> str:
    """How a path is shown_path to a person: a snapshot as NAME@ and the start of its commit."""
    name = name_of_snapshot(path) if path is not None else None
    return str(name.at(name.revision[:12]) if name else path)
