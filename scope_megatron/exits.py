"""Exit codes of a run, and the exception that carries one.

| code | meaning | worth a restart from the last checkpoint |
|---|---|---|
| 0 | finished | |
| 1 | a defect; its traceback is printed | no |
| 2 | a wrong setting, file or data | no |
| 3 | another rank of the job is gone | yes |
| 4 | a rank hung: the stacks of all ranks are in output_dir/stacks | yes |
| 5 | too many updates in a row had a loss or gradient that is not finite | no |
| 6 | the rollout engine failed twice, or the memory of the device did not suffice | yes |
| 7 | the last checkpoint, or the export, could not be written | no |
| 130, 143 | stopped by SIGINT or SIGTERM; the state is saved | yes |
| 134 | a rank aborted itself (SIGABRT): a collective of NCCL timed out, a library's check | yes |
| 137 | a rank was killed (SIGKILL; by the system when memory runs out) | yes |
"""

from __future__ import annotations

DEFECT = 1
USAGE = 2
LOST_RANK = 3
HUNG = 4
NONFINITE = 5
ENGINE = 6
UNSAVED = 7
INTERRUPTED = 130
ABORTED = 134
TERMINATED = 143
KILLED = 137

# What `faults.restarts` of the local launcher, and a requeued Slurm job, start again after.
# A stop that was asked for is one for Slurm (preemption), but not for a person at a terminal.
RESTARTABLE = frozenset({LOST_RANK, HUNG, ENGINE, ABORTED, KILLED})


class StopRun(Exception):
    """Ends the run with one line and ``code``; raised by every rank, or by one that is alone."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
