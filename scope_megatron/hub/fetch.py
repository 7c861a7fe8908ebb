"""A Hub name -> the folder of its snapshot on this machine.

One process of a node fetches, under a file lock; the others wait for it and find the snapshot
whole. A revision that is a commit, and is there, costs no request to the hub. Tokens come from
huggingface_hub's own places (HF_TOKEN, `hf auth login`); no message here repeats a request's
headers or a library's text.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from scope_megatron.hub.names import HubName, Kind, cache_directory, is_commit

MODEL_FILES = ("*.json", "*.safetensors", "*.model", "*.jinja", "*.txt")
TOKENIZER_FILES = ("*token*", "*.model", "*.jinja", "vocab*", "merges.txt", "*config.json")
DATA_FILES = (
    *("README.md", "*.parquet", "*.jsonl", "*.json", "*.csv", "*.arrow"),
    *("*.jsonl.gz", "*.json.gz", "*.jsonl.zst", "*.json.zst"),
)
_NEVER = ("*/*", "consolidated*")  # other formats of the same weights, in folders of their own
ANSWER_WITHIN_S = 10.0  # else the hub counts as unreachable
_TRUE = ("1", "on", "yes", "true")


class HubError(ValueError):
    """`<what is wrong>; <what to do>`. The caller puts the setting in front."""


def fetch(
    name: HubName, kind: Kind = "model", files: Sequence[str] = MODEL_FILES, setting: str = ""
) -> Path:
    """The folder with the repository's ``files`` (patterns) at the revision's present commit.

    Raises HubError: no such repository or revision, no access, no network and no whole copy in
    the cache, a file that came incompletely. ``setting`` is named in notes on stderr.
    """
    commit = _commit(name, kind, setting)
    if found := _cached(name.at(commit), kind, files):
        return found
    if _offline():
        raise _absent(name, kind, "HF_HUB_OFFLINE is set")
    with _one_per_node(name, kind, setting):
        if found := _cached(name.at(commit), kind, files):
            return found
        _note(setting, f"fetching {name} from {_endpoint()} to {cache_directory()}")
        return _download(name, commit, kind, files)


def _commit(name: HubName, kind: Kind, setting: str) -> str:
    """The commit that the revision stands for: the hub's word, without it the cache's."""
    if is_commit(name.revision):
        return name.revision
    kept = name.storage(kind) / "refs" / name.revision
    before = kept.read_text().strip() if kept.is_file() else None
    if _offline():
        if before is None:
            raise _absent(name, kind, "HF_HUB_OFFLINE is set")
        return before
    from huggingface_hub import HfApi

    try:
        with _hub_errors(name, kind, before):
            info = HfApi(endpoint=_endpoint()).repo_info(
                name.repo, repo_type=kind, revision=name.revision, timeout=ANSWER_WITHIN_S
            )
    except _Unreachable as error:
        if before is None:
            raise _absent(name, kind, str(error)) from None
        _note(setting, f"{error}; going on with {name.at(before[:12])} from {cache_directory()}")
        return before
    assert info.sha is not None
    return info.sha


def _cached(name: HubName, kind: Kind, files: Sequence[str]) -> Path | None:
    """The snapshot of a commit if the cache has it whole, found without a request."""
    storage = name.storage(kind)
    folder = storage / "snapshots" / name.revision
    if not folder.is_dir():
        return None
    if not (storage / "trees" / f"{name.revision}.json").is_file():
        # Written by an older huggingface_hub: nobody knows what else the snapshot should hold.
        return folder if _offline() else None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        found = snapshot_download(
            name.repo,
            repo_type=kind,
            revision=name.revision,
            local_files_only=True,
            cache_dir=cache_directory(),
            allow_patterns=list(files),
            ignore_patterns=_ignored(kind),
        )
    except LocalEntryNotFoundError:
        return None
    return Path(found)


def _download(name: HubName, commit: str, kind: Kind, files: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        with _quiet(), _hub_errors(name, kind, None):
            found = snapshot_download(
                name.repo,
                repo_type=kind,
                revision=commit,
                endpoint=_endpoint(),
                cache_dir=cache_directory(),
                allow_patterns=list(files),
                ignore_patterns=_ignored(kind),
            )
    except _Unreachable as error:
        raise _absent(name, kind, str(error)) from None
    _remember(name, commit, kind)
    return Path(found)


def _remember(name: HubName, commit: str, kind: Kind) -> None:
    """Write the branch's commit as huggingface_hub does: the way back when there is no network."""
    if is_commit(name.revision):
        return
    path = name.storage(kind) / "refs" / name.revision
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(commit)
    temporary.replace(path)


def _ignored(kind: Kind) -> list[str] | None:
    return list(_NEVER) if kind == "model" else None


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars in a log file, and no library's word on what ends in one of our lines."""
    from huggingface_hub.utils import disable_progress_bars, logging

    if not sys.stderr.isatty():
        disable_progress_bars()
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


class _Unreachable(Exception):
    """No answer from the hub; the text says which."""


@contextmanager
def _hub_errors(name: HubName, kind: Kind, cached: str | None) -> Iterator[None]:
    """huggingface_hub's errors as HubError or _Unreachable. ``cached``: an older commit."""
    import httpx2
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        raise HubError(
            f"{name.repo} is gated on {_endpoint()}; accept its terms at "
            f"{_page(name, kind)} and give a token: HF_TOKEN, or hf auth login"
            + _older(name, cached)
        ) from None
    except errors.RevisionNotFoundError:
        raise HubError(
            f"{name.repo} has no revision {name.revision} on {_endpoint()}; "
            f"see {_page(name, kind)}/commits/main" + _older(name, cached)
        ) from None
    except errors.RepositoryNotFoundError:
        raise HubError(
            f"{name.repo} is neither a path here nor a {kind} on {_endpoint()}; correct the name, "
            "or give a token if it is private: HF_TOKEN, or hf auth login" + _older(name, cached)
        ) from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise HubError(
                f"{_endpoint()} refuses {name.repo} to this token (status {status}); give another: "
                "HF_TOKEN, or hf auth login" + _older(name, cached)
            ) from None
        raise _Unreachable(f"{_endpoint()} answers with status {status}") from None
    except (httpx2.RemoteProtocolError, httpx2.ReadError) as error:
        raise _cut_off(name, type(error).__name__) from None
    except (httpx2.HTTPError, errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError):
        raise _Unreachable(f"{_endpoint()} cannot be reached") from None
    except OSError as error:
        if "Consistency check failed" in str(error):
            raise _cut_off(name, "a file is shorter than announced") from None
        raise HubError(
            f"{name.repo} cannot be stored in {cache_directory()} "
            f"({error.strerror or 'is there space?'}); set HF_HOME to a directory with room"
        ) from None


def _cut_off(name: HubName, reason: str) -> HubError:
    return HubError(
        f"{name.repo} came incompletely from {_endpoint()} ({reason}); run the command again, "
        f"which goes on with the whole files in {cache_directory()}"
    )


def _absent(name: HubName, kind: Kind, reason: str) -> HubError:
    """Neither fetched nor in the cache."""
    return HubError(
        f"{name} is no path here and not whole in {cache_directory()}, and {reason}; fetch it "
        f"where there is a network (hf download {name.repo}"
        f"{' --repo-type dataset' if kind == 'dataset' else ''} --revision {name.revision}), "
        "set HF_HOME to a cache that has it, or give a path"
    )


def _older(name: HubName, cached: str | None) -> str:
    return f"; or use the cached copy: {name.at(cached)}" if cached else ""


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def _page(name: HubName, kind: Kind) -> str:
    return f"{_endpoint()}/{'datasets/' if kind == 'dataset' else ''}{name.repo}"


def _offline() -> bool:
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return any(os.environ.get(name, "").lower() in _TRUE for name in names)


def _one_per_node(name: HubName, kind: Kind, setting: str) -> AbstractContextManager[object]:
    """A lock that the processes of a node share; none where the cache cannot be written to."""
    from filelock import FileLock, Timeout

    path = cache_directory() / ".locks" / f"scope-megatron-{name.storage(kind).name}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if os.environ.get("LOCAL_RANK", "0") == "0":
                _note(setting, f"another process fetches {name.repo}; waiting for it")
            lock.acquire()
    except OSError:
        return nullcontext()
    return _release(lock)


@contextmanager
def _release(lock: object) -> Iterator[None]:
    try:
        yield
    finally:
        lock.release()  # type: ignore[attr-defined]


def _note(setting: str, text: str) -> None:
    print(f"{setting}: {text}" if setting else text, file=sys.stderr, flush=True)
