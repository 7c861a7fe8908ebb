"""One live run per directory; a dead one's lock is nobody's."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from scope_megatron.job.lock import locked, require_free
from scope_megatron.outputs import LOCK

HOLD = """
import os, sys, time
from pathlib import Path
from scope_megatron.job.lock import locked
with locked(Path(sys.argv[1])):
    if os.fork() == 0:  # as a verifier that outlives its run: it inherits no lock
        time.sleep(float(sys.argv[2]))
        os._exit(0)
    print("held", flush=True)
    time.sleep(60)
"""


def start(directory: Path, child_s: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLD, str(directory), str(child_s)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_live_run_is_named_and_a_dead_one_is_followed(tmp_path: Path) -> None:
    holder = start(tmp_path, child_s=5.0)
    try:
        with pytest.raises(ValueError) as refused, locked(tmp_path):
            pass
        line = str(refused.value)
        assert f"process {holder.pid} on {socket.gethostname()}" in line
        with pytest.raises(ValueError, match="is in use by process"):
            require_free(tmp_path)
        assert line.startswith(f"output_dir: {tmp_path} is in use by") and "\n" not in line
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait(10)
    require_free(tmp_path)
    with locked(tmp_path):
        assert f'"pid": {os.getpid()},' in (tmp_path / LOCK).read_text()


def test_only_rank_zero_takes_the_lock(tmp_path: Path) -> None:
    require_free(tmp_path / "run")
    with locked(tmp_path / "run", enabled=False):
        assert not (tmp_path / "run").exists()
