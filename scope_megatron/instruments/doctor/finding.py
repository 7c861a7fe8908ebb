"""One line of the doctor's table, and the way to run what may hang."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """``NOTE``: optional and not there. ``WARNING``: may fail later. ``ERROR``: will not train."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True)
class Finding:
    """One check: its name, level, detail, and the fix."""

    name: str
    level: Level
    detail: str
    fix: str = ""


def output_of(command: Sequence[str], timeout_s: float = 20.0) -> tuple[int | None, str, str]:
    """(exit code, stdout, stderr) of a program; the code is None when it hung or is not there."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return None, "", f"no answer within {timeout_s:.0f} s"
    except OSError as error:
        return None, "", str(error)
    return done.returncode, done.stdout.strip(), done.stderr.strip()


def last_line(text: str) -> str:
    """The line of a traceback or message that says what was wrong."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no message"
