"""Released versions inside setup.py's ranges, and their sources, downloaded but not installed."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version


class DownloadError(RuntimeError):
    """The package index did not give what was asked for."""


def requirement(setup: Path, distribution: str) -> Requirement:
    """The one requirement for a distribution among the strings of a setup.py."""
    wanted = canonicalize_name(distribution)
    found: dict[str, Requirement] = {}
    for node in ast.walk(ast.parse(setup.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
            continue
        if not re.fullmatch(r"[\w.-]+(\[[\w,-]+\])?\s*([<>=!~][^ ]*)(,.*)?", node.value):
            continue
        parsed = Requirement(node.value)
        if canonicalize_name(parsed.name) == wanted:
            found[str(parsed.specifier)] = parsed
    if len(found) != 1:
        raise ValueError(f"{setup}: {len(found)} different requirements of {distribution}")
    return found.popitem()[1]


def released(distribution: str) -> list[Version]:
    """Every final version that the index has, lowest first."""
    done = _pip("index", "versions", distribution)
    listed = re.search(r"^Available versions: (.*)$", done, re.MULTILINE)
    if listed is None:
        raise DownloadError(f"pip index versions {distribution}: no list of versions")
    versions = [Version(text.strip()) for text in listed.group(1).split(",")]
    return sorted(v for v in versions if not v.is_prerelease)


def extremes(versions: list[Version], wanted: Requirement) -> list[Version]:
    """Lowest and highest version that the requirement allows; one if they are the same."""
    allowed = within(versions, wanted)
    return sorted({allowed[0], allowed[-1]})


def within(versions: list[Version], wanted: Requirement) -> list[Version]:
    """The versions that the requirement allows. Raises ValueError where there are none."""
    allowed = [v for v in versions if wanted.specifier.contains(v)]
    if not allowed:
        raise ValueError(f"no released version satisfies {wanted}")
    return allowed


def sources(distribution: str, version: Version, keep: Path | None) -> Path:
    """A folder with the Python files of a version's wheel; the caller removes it unless kept."""
    folder = keep / f"{distribution}-{version}" if keep is not None else None
    if folder is not None and folder.is_dir():
        return folder
    unpacked = Path(tempfile.mkdtemp(prefix="contract-"))
    try:
        with tempfile.TemporaryDirectory(prefix="wheel-") as download:
            arguments = ["--no-deps", "--only-binary=:all:", "--dest", download]
            _pip("download", *arguments, f"{distribution}=={version}")
            (wheel,) = Path(download).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                names = [name for name in archive.namelist() if name.endswith(".py")]
                archive.extractall(unpacked, members=names)
    except BaseException:
        shutil.rmtree(unpacked, ignore_errors=True)
        raise
    if folder is not None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(unpacked, folder)
        return folder
    return unpacked


def _pip(*arguments: str) -> str:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    if done.returncode:
        reason = [line for line in done.stderr.splitlines() if "ERROR" in line] or ["no reason"]
        raise DownloadError(f"pip {' '.join(arguments[:2])}: {reason[-1]}")
    return done.stdout
