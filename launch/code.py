"""The code of a run, fixed at its submission: what HEAD holds, in the job's own directory.

Without it a job imports whatever stands in the working tree when it starts, or starts again.
"""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = "code"


def archive(allow_dirty: bool) -> tuple[str, bytes]:
    """HEAD's commit id and its files as a tar. ValueError outside git or with changed files."""
    commit = _git("rev-parse", "HEAD").decode().strip()
    changed = _git("status", "--porcelain").decode().splitlines()
    if changed and not allow_dirty:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise ValueError(
            f"--package: {changed[0][3:]}{more} would be left out, not being committed; "
            "commit, or add --allow-dirty to run HEAD without it"
        )
    return commit, _git("archive", "--format=tar", "HEAD")


def unpack(commit: str, tar: bytes, job_dir: Path) -> None:
    """Put the code into the job's directory, and the commit's id beside it."""
    with tarfile.open(fileobj=io.BytesIO(tar)) as files:
        files.extractall(job_dir / FOLDER, filter="data")
    (job_dir / "code_commit").write_text(f"{commit}\n")


def use(quoted_job_dir: str) -> str:
    """Shell text: Python takes modules from there, not from the current directory."""
    return (
        f"export PYTHONSAFEPATH=1 PYTHONPATH={quoted_job_dir}/{FOLDER}"
        '"${PYTHONPATH:+:$PYTHONPATH}"\n'
    )


def _git(*arguments: str) -> bytes:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True)
    except FileNotFoundError:
        raise ValueError("--package: needs git, which is not installed here") from None
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip().splitlines() or ["git failed"]
        raise ValueError(f"--package: {reason[-1]}")
    return done.stdout
