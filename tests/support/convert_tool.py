"""tools/convert_hf_checkpoint.py, started as a user does or called in this process."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
import typer

from tools import convert_hf_checkpoint as tool

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "convert_hf_checkpoint.py"


def in_process(*arguments: object) -> int:
    """Run the tool here (a start takes seconds); its exit status."""
    app = typer.Typer()
    app.command()(tool.main)
    with patch.dict(os.environ), pytest.raises(SystemExit) as exit_:  # it sets some
        app(list(map(str, arguments)))
    return exit_.value.code


def convert(*arguments: object, file_bytes: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run the tool; with ``file_bytes`` no file may grow beyond that (as on a full disk)."""

    def limit() -> None:
        if file_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))

    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=280, env=environment, preexec_fn=limit
    )
