"""What prompts are made of, as a description that names each part.

Two runs with equal descriptions have the same prompts: its digest is the key of the store. When
prompts differ at resume, the description says which part did.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from scope_megatron.config.sections.data import DataSource
from scope_megatron.data.columns import RowShape
from scope_megatron.data.readers import data_folder, require_source
from scope_megatron.data.tokenise import PromptRecipe
from scope_megatron.data.tokenizer import Tokenizer
from scope_megatron.hub import is_commit

LIBRARIES = ("transformers", "tokenizers", "sentencepiece", "jinja2", "datasets", "pyarrow")
SETTLED_S = 2.0  # a file that was changed less long ago may change again at the same time stamp


def prompt_cache_directory(setting: str | None = None) -> Path:
    """Where tokenised rows are kept: ``data.cache_dir``, SCOPE_MEGATRON_CACHE, or ~/.cache."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "scope_megatron"
    chosen = setting or os.environ.get("SCOPE_MEGATRON_CACHE") or default
    return Path(chosen).expanduser().absolute()


def _unless_default(recipe: PromptRecipe) -> dict[str, Any]:
    """Settings that came later: a description without them is still the same prompts'."""
    found = {
        "data.suffix": recipe.suffix,
        "data.overlong": "cut" if recipe.cut else None,
        "teacher.privileged": recipe.privileged,
        "verifier.name": recipe.verifier if recipe.verifier != "auto" else None,
    }
    return {name: value for name, value in found.items() if value}


def describe_prompts(
    sources: tuple[DataSource, ...],
    shapes: list[RowShape],
    recipe: PromptRecipe,
    tokenizer: Tokenizer,
    setting: str,
    cache: Path,
) -> dict[str, Any]:
    """Every part that decides the prompts, under the name that a user knows it by."""
    parts: dict[str, Any] = {
        "data.max_prompt_tokens": recipe.max_prompt_tokens,
        "data.system_prompt": recipe.system_prompt,
        "responses": recipe.need_response,
        **_unless_default(recipe),
        **tokenizer.parts(),
    }
    for place, (source, shape) in enumerate(zip(sources, shapes, strict=True), start=1):
        parts[f"set {place}"] = str(source.path if source.hub is None else source.hub.repo)
        parts[f"revision of set {place}"] = _commit(source, setting)
        for name in ("subset", "files"):
            parts[f"{name} of set {place}"] = getattr(source, name)
        purpose = "training's" if setting == "data.train" else "evaluation's"
        parts[f"split of set {place}"] = source.split or purpose
        columns = shape.columns
        parts[f"columns of set {place}"] = (
            columns if isinstance(columns, str | None) else {**columns}
        )
        if isinstance(columns, str):
            parts[f"code of {columns}"] = _code_digest(columns)
        parts[f"filter of set {place}"] = {**shape.filter}
        if shape.teacher:
            parts[f"teacher of set {place}"] = shape.teacher
        if source.hub is None:
            require_source(source, setting)
            try:
                parts[f"contents of set {place}"] = contents_digest(source.path, cache)
            except OSError as error:
                raise ValueError(
                    f"{setting}: {error.filename} cannot be read: {error.strerror}"
                ) from error
    return parts


def _commit(source: DataSource, setting: str) -> str | None:
    """The commit of a Hub name. A loaded configuration names it, and nothing is asked."""
    if source.hub is None:
        return None
    pinned = is_commit(source.hub.revision)
    return source.hub.revision if pinned else data_folder(source, setting).name


def key_of(description: dict[str, Any]) -> str:
    """The store's name: the description, this code and the libraries that tokenise."""
    everything = [description, _own_code(), {name: _version(name) for name in LIBRARIES}]
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()[:32]


def contents_digest(path: Path, cache: Path) -> str:
    """SHA-256 of a file's bytes, of a folder's files and their names.

    A file that did not change since it was last read (by size, time stamps and inode) is not
    read again.
    """
    if not path.is_dir():
        return _file_digest(path, cache)
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        digest.update(f"{file.relative_to(path)}\t{_file_digest(file, cache)}\n".encode())
    return digest.hexdigest()


def _file_digest(path: Path, cache: Path) -> str:
    name = hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:32]
    memo = cache / "digests" / f"{name}.json"
    status = path.stat()
    state = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev]
    try:
        known = json.loads(memo.read_text())
        if known["state"] == state:
            return str(known["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # unknown, or of no use
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if time.time() - max(status.st_mtime, status.st_ctime) > SETTLED_S:
        with suppress(OSError):  # a cache that cannot be written to may still be read
            temporary = memo.with_suffix(f".{os.getpid()}")
            memo.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps({"state": state, "sha256": digest}))
            temporary.replace(memo)
    return digest


def _code_digest(function: str) -> str | None:
    """SHA-256 of the file that the user's function stands in."""
    spec = importlib.util.find_spec(function.partition(":")[0])
    if spec is None or spec.origin is None:
        return None
    return hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()


def _own_code() -> str:
    """SHA-256 of this room: whoever changes how rows are read is not shown what was read before."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
