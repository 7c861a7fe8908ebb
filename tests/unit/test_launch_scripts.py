"""What becomes of a job when its ranks end: the generated shell text, Slurm's commands faked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch import scripts, status
from launch.cluster import seconds

RANKS = 2


def fake(directory: Path, name: str, text: str) -> None:
    path = directory / name
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


def run_batch(tmp_path: Path, words: tuple[str, ...], code: int, part: int = 0) -> tuple[int, bool]:
    """The batch script's exit code and whether it asked for a requeue.

    ``words`` are what the ranks leave behind, "" for nothing; ``code`` is srun's exit code.
    """
    job_dir, commands = tmp_path / "job it's", tmp_path / "bin"
    job_dir.mkdir(exist_ok=True)
    commands.mkdir(exist_ok=True)
    exits = f"'{tmp_path}'/job\\ it\\'s/exits/7.{part}"
    left = "\n".join(f"echo {w} > {exits}/{rank}" for rank, w in enumerate(words) if w)
    fake(commands, "srun", f"{left}\nexit {code}")
    fake(commands, "scontrol", f'[ "$1" = requeue ] && echo "$2" > "{tmp_path}/requeued"')
    text = scripts.batch_setup(job_dir, RANKS, max_restarts=2) + "srun task\nexit $?\n"
    environment = {
        "PATH": f"{commands}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "7",
        "head_node": "n1",
    }
    if part:
        environment["SLURM_RESTART_COUNT"] = str(part)
    done = subprocess.run(["bash", "-c", text], env=environment, timeout=20)
    asked = tmp_path / "requeued"
    requeued = asked.exists()
    asked.unlink(missing_ok=True)
    return done.returncode, requeued


@pytest.mark.parametrize(
    ("words", "code", "exit_code", "requeued"),
    [
        (("0", "0"), 0, 0, False),
        (("143", "143"), 0, 143, True),
        (("0", "143"), 0, 143, True),  # one rank was through already
        (("2", "2"), 2, 2, False),
        (("2", "143"), 143, 2, False),  # srun stopped the other rank while it was starting
        (("1", "143"), 1, 1, False),  # an exception; the other rank was stopped by srun
        (("1", "137"), 137, 143, True),  # a killed rank; the other one lost its connection
        (("3", "137"), 137, 143, True),  # the same, noticed
        (("4", "4"), 4, 143, True),  # the watchdog found a hung rank
        (("5", "5"), 5, 5, False),  # losses that are not finite stay so
        (("1", ""), 137, 143, True),  # killed with the shell around it
        (("unsaved", "unsaved"), 0, 143, True),  # counted: it must not go round for ever
        (("", ""), 1, 143, True),  # nothing started
    ],
)
def test_ranks_codes_decide(
    words: tuple[str, ...], code: int, exit_code: int, requeued: bool, tmp_path: Path
) -> None:
    assert run_batch(tmp_path, words, code) == (exit_code, requeued)


def test_dead_ranks_are_counted_and_preemptions_are_not(tmp_path: Path) -> None:
    asked, died = ("143", "143"), ("137", "1")
    parts = (asked, died, asked, died, asked, died)
    outcomes = [
        run_batch(tmp_path, words, 137 if words is died else 0, part)
        for part, words in enumerate(parts)
    ]
    assert outcomes == [(143, True)] * 5 + [(137, False)], "the third death is one too many"


def start_rank(tmp_path: Path, python: str, saved: bool) -> tuple[subprocess.Popen[bytes], Path]:
    """A rank whose command is that Python program."""
    (tmp_path / "exits" / "7.0").mkdir(parents=True)
    (tmp_path / "out" / "checkpoints").mkdir(parents=True)
    if saved:
        (tmp_path / "out" / "checkpoints" / "latest").touch()
    program = tmp_path / "program.py"
    program.write_text(python)
    text = scripts.rank_script(
        f"{sys.executable} {program}",
        ranks_per_node=1,
        job_dir=str(tmp_path),
        output_dir=tmp_path / "out",
    )
    environment = os.environ | {
        "SLURM_JOB_ID": "7",
        "SLURM_PROCID": "1",
        "SLURM_LOCALID": "0",
        "SLURM_NTASKS": "2",
    }
    rank = subprocess.Popen(["bash", "-c", text], env=environment, start_new_session=True)
    return rank, tmp_path / "exits" / "7.0" / "1"


WAITING = """
import os, pathlib, signal, sys, time
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
pathlib.Path(os.environ["READY"]).write_text(os.environ["RANK"] + os.environ["LOCAL_WORLD_SIZE"])
while not stop:
    time.sleep(0.02)
time.sleep(0.5)  # as saving takes: the signal that the shell passes on comes as well
sys.exit({code})
"""


@pytest.mark.parametrize("everybody", [True, False], ids=["all processes", "first process"])
@pytest.mark.parametrize(
    ("code", "saved", "word"),
    [(143, True, "143"), (143, False, "unsaved"), (1, True, "143"), (2, True, "2"), (0, True, "0")],
)
def test_rank_that_is_asked_to_stop(
    code: int,
    saved: bool,
    word: str,
    everybody: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SIGTERM goes to all processes of a task (proctrack/linuxproc, pgid) or to its first one
    (proctrack/cgroup, which most clusters have); a wrong setting stays one."""
    ready = tmp_path / "ready"
    monkeypatch.setenv("READY", str(ready))
    rank, left = start_rank(tmp_path, WAITING.format(code=code), saved)
    try:
        deadline = time.monotonic() + 20
        while not ready.exists() or not ready.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert ready.read_text() == "11"
        (os.killpg if everybody else os.kill)(rank.pid, signal.SIGTERM)
        assert rank.wait(20) == (code if word not in ("143", "unsaved") else 0)
    finally:
        if rank.poll() is None:
            os.killpg(rank.pid, signal.SIGKILL)
            rank.wait()
    assert left.read_text().strip() == word


def test_rank_that_is_killed(tmp_path: Path) -> None:
    rank, left = start_rank(tmp_path, "import os; os.kill(os.getpid(), 9)", saved=True)
    assert rank.wait(20) == 137
    assert left.read_text() == "137\n"


@pytest.mark.parametrize(
    ("text", "value"),
    [("30", 1800), ("1:30", 90), ("04:00:00", 14400), ("1-2", 93600), ("2-01:30", 178200)],
)
def test_slurm_s_times(text: str, value: int) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize(
    ("squeue", "scontrol", "line", "code"),
    [
        ("PENDING|Resources||0:00|N/A", "JobId=7 Restarts=0", "7: waiting (Resources)", 0),
        (
            "RUNNING|None|n[1-2]|1:05|x",
            "Restarts=1",
            "running (on n[1-2], 1:05, restarted once)",
            0,
        ),
        ("", "JobState=COMPLETED ExitCode=0:0 NodeList=n1 Restarts=0", "7: done (exit 0:0", 0),
        ("", "JobState=TIMEOUT ExitCode=0:15 NodeList=n1", "ended at its time limit", 1),
        ("", "", "7: unknown", 2),
    ],
)
def test_status_without_accounting(
    squeue: str,
    scontrol: str,
    line: str,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, text in (("squeue", squeue), ("scontrol", scontrol)):
        unknown = "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1"
        fake(tmp_path, name, f"echo '{text}'" if text else unknown)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(status, "directory_of", lambda number: None)
    assert status.main(["7"]) == code
    assert line in capsys.readouterr().out
