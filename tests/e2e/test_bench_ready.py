"""Commands in forks of a process that has imported everything (benchmarks/ready.py)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# in a process of its own: the server of forks is one per process, and tests have another
CALLS = """
import sys
from pathlib import Path
from benchmarks.ready import run_command

log = Path(sys.argv[1])
quickstart = ["check", "configs/quickstart.yaml", f"output_dir={log.parent / 'run'}"]
print(run_command(quickstart, log, 200))
print(run_command([*quickstart, "objective.tua=2"], log, 200))
try:
    run_command(quickstart, log, 0.0)
except TimeoutError as error:
    print(error)
"""


def test_a_fork_ends_as_the_command_does(tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = [sys.executable, "-c", CALLS, str(log)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    codes = done.stdout.splitlines()
    assert codes[:2] == ["0", "2"]
    assert codes[2].startswith("not done after 0 s: check configs/quickstart.yaml")
    assert "unknown key objective.tua" in log.read_text()
