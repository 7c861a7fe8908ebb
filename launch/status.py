"""State of jobs: waiting, running, done, failed; also on clusters without an accounting database.

    python -m launch.status [--follow] JOB_ID [JOB_ID ...]

Asks squeue, then scontrol, which forgets a job some minutes after its end (Slurm's MinJobAge),
and then looks at what the ranks left in the job's directory. nemo-run's own status needs sacct.

Exit status: 0 every job is done, waits or runs; 1 one ended in another way; 2 one is not known.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

NUMBER_FILE = "slurm_job_id"
POLL_S = 1.0  # the log
POLLS_PER_QUESTION = 5  # Slurm's controller is asked less often
STATES = {
    "PENDING": "waiting",
    "CONFIGURING": "waiting",
    "REQUEUED": "waiting",
    "REQUEUE_HOLD": "held",
    "SPECIAL_EXIT": "held",
    "RUNNING": "running",
    "SUSPENDED": "suspended",
    "COMPLETING": "ending",
    "COMPLETED": "done",
    "FAILED": "failed",
    "CANCELLED": "cancelled",
    "PREEMPTED": "preempted",
    "TIMEOUT": "ended at its time limit",
    "DEADLINE": "ended at its deadline",
    "NODE_FAIL": "ended with its node",
    "BOOT_FAIL": "ended with its node",
    "OUT_OF_MEMORY": "out of memory",
}
ALIVE = ("waiting", "held", "running", "suspended", "ending")


@dataclass(frozen=True)
class Status:
    """``state``: one of STATES' values, or "unknown"; ``detail``: the rest of the line."""

    number: str
    state: str
    detail: str = ""

    @property
    def alive(self) -> bool:
        return self.state in ALIVE

    def __str__(self) -> str:
        return f"job {self.number}: {self.state}" + (f" ({self.detail})" if self.detail else "")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m launch.status", description="State of jobs.")
    parser.add_argument("jobs", metavar="JOB_ID", nargs="+", help="Slurm's number")
    parser.add_argument("--follow", action="store_true", help="show the log until the job ends")
    arguments = parser.parse_args(argv)
    for number in arguments.jobs:
        if not number.isdigit():
            print(f"status: error: {number!r} is no job's number", file=sys.stderr)
            return 2
    try:
        if arguments.follow:
            return max(follow(number) for number in arguments.jobs)
        found = [status(number) for number in arguments.jobs]
    except ValueError as error:
        print(f"status: error: {error}", file=sys.stderr)
        return 2
    for one in found:
        print(one)
    return max(exit_status(one) for one in found)


def exit_status(found: Status) -> int:
    if found.state == "unknown":
        return 2
    return 0 if found.alive or found.state == "done" else 1


def status(number: str) -> Status:
    """The state of job ``number``. ValueError when Slurm's commands are missing or do not answer.

    squeue and scontrol are asked, not sacct.
    """
    line = _ask("squeue", "-h", "-j", number, "-o", "%T|%r|%N|%M|%S")
    if line.strip():
        state, reason, nodes, elapsed, start = line.splitlines()[0].split("|")
        if STATES.get(state) == "waiting":
            return Status(number, "waiting", _joined(reason, start, _restarts(number)))
        if STATES.get(state) in ALIVE:
            return Status(number, STATES[state], _joined(f"on {nodes}", elapsed, _restarts(number)))
    fields = show(number)
    if fields:
        state = STATES.get(fields["JobState"], fields["JobState"].lower())
        code = fields.get("ExitCode", "")
        return Status(
            number,
            state,
            _joined(f"exit {code}", f"on {fields.get('NodeList', '')}", _restarts(number, fields)),
        )
    return _from_files(number)


def show(number: str) -> dict[str, str]:
    """`scontrol show job` as a mapping; empty once Slurm has forgotten the job."""
    line = _ask("scontrol", "show", "--oneliner", "job", number)
    return dict(re.findall(r"(\w+)=(\S*)", line))


def remember(job_dir: Path, number: str) -> None:
    """Write the job's number into its directory, where :func:`directory_of` finds it."""
    (job_dir / NUMBER_FILE).write_text(f"{number}\n")


def directory_of(number: str) -> Path | None:
    """The newest job's directory under NEMORUN_HOME with that number."""
    from launch.executors import import_nemo_run

    home = Path(import_nemo_run().config.get_nemorun_home())
    found = [
        path.parent
        for path in home.glob(f"experiments/*/*/*/{NUMBER_FILE}")
        if path.read_text().strip() == number
    ]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def follow(number: str) -> int:
    """Print the log of job ``number`` as it grows, over restarts, until the job has ended."""
    directory = directory_of(number)
    if directory is None:
        raise ValueError(f"job {number} was not launched from here; its log is not known")
    positions: dict[Path, int] = {}
    before = ""
    while True:
        now = status(number)
        if now.state != before:
            print(f"launch: {now}", file=sys.stderr, flush=True)
            before = now.state
        for _ in range(POLLS_PER_QUESTION):
            _print_new(directory, number, positions)
            if not now.alive:
                return exit_status(now)
            time.sleep(POLL_S)


def _print_new(directory: Path, number: str, positions: dict[Path, int]) -> None:
    """Each part of a job that went back into the queue has a log: log-NAME_NUMBER_PART.out."""
    parts = directory.glob(f"log-*_{number}_*.out")
    for path in sorted(parts, key=lambda path: int(path.stem.rpartition("_")[2])):
        with path.open("rb") as log:
            log.seek(positions.get(path, 0))
            sys.stdout.write(log.read().decode("utf-8", "replace"))
            positions[path] = log.tell()
    sys.stdout.flush()


def _from_files(number: str) -> Status:
    """A job that Slurm has forgotten: what its ranks wrote when they ended."""
    directory = directory_of(number)
    parts = list(directory.glob(f"exits/{number}.*[0-9]")) if directory else []
    if not parts:
        return Status(number, "unknown", "Slurm does not know it, and it left nothing here")
    last = max(parts, key=lambda path: int(path.suffix[1:]))
    codes = {path.read_text().strip() for path in last.iterdir()}
    if codes == {"0"}:
        return Status(number, "done", "Slurm has forgotten it")
    codes_text = " ".join(sorted(codes)) or "none"
    return Status(number, "failed", f"ranks' exit codes: {codes_text}; Slurm has forgotten it")


def _restarts(number: str, fields: dict[str, str] | None = None) -> str:
    count = int((fields if fields is not None else show(number)).get("Restarts", "0"))
    return f"restarted {count} times" if count > 1 else "restarted once" if count else ""


def _joined(*parts: str) -> str:
    return ", ".join(part for part in parts if part and part not in ("N/A", "None", "on "))


def _ask(*command: str) -> str:
    """The command's output; "" when Slurm does not know the job."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        raise ValueError(f"there is no {command[0]} here; run this on a login node") from None
    if done.returncode and "nvalid job id" not in done.stderr:
        reason = (done.stderr.strip() or f"exit {done.returncode}").splitlines()[-1]
        raise ValueError(f"{command[0]} does not answer: {reason}")
    return "" if done.returncode else done.stdout


if __name__ == "__main__":
    sys.exit(main())
