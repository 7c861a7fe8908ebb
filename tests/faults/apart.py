"""Faults of runs whose engines have ranks of their own: one rank trains, one samples."""

from __future__ import annotations

import sys

from tests.faults.cases import ENGINE_AT, Case, killed, restarted, stopped
from tests.faults.stage import Outcome, Stage

# Rank 0 trains, rank 1 samples a step ahead: while it samples step 2, step 1 is trained and not
# saved yet. So both have to be made again.
AHEAD = (
    *("parallel.tensor=1", "parallel.data=1", "rollout.lag=1"),
    *("rollout.placement=separate", "rollout.ranks=1"),
)


def sampling_hangs(stage: Stage) -> Outcome:
    """The rank that trains waits for it all the while, and is not what hangs."""
    stage.inject("hang", "verify", ENGINE_AT)
    run = stage.start("faults.restarts=1", "faults.hang_timeout_s=20", *AHEAD)
    return restarted(stage, run, r"rank 1 \(.*made no progress", 1)


def under_torchrun(stage: Stage) -> Outcome:
    stage.inject("kill", "rollout", ENGINE_AT)
    program = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2")
    program += ("--max-restarts", "1", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0")
    run = stage.start("resume=auto", *AHEAD, program=program)
    at, step = stage.injected(run)
    noticed, said = run.said(r"rank 1 \(.*went away")
    run.finish(0)
    return Outcome(noticed - at, stage.again(run, step), "torchrun --max-restarts", said)


APART_CASES = [
    Case(
        "kill -9 of a sampling rank, in rollout",
        killed("rollout", step=ENGINE_AT, overrides=AHEAD),
        engine=True,
        again=2,
    ),
    Case(
        "kill -9 of a sampling rank, as parameters come",
        killed("sync", step=ENGINE_AT, overrides=AHEAD),
        engine=True,
        again=2,
    ),
    Case(
        "kill -9 of a training rank beside a sampling one, in train",
        killed("train", rank=0, step=ENGINE_AT, overrides=AHEAD),
        engine=True,
    ),
    Case(
        "SIGSTOP of a sampling rank",
        stopped(1, "rollout", ENGINE_AT, AHEAD),
        engine=True,
        again=2,
    ),
    Case("kill -9 of a sampling rank under torchrun", under_torchrun, engine=True, again=2),
    Case("hang of a sampling rank (hang_timeout_s=20)", sampling_hangs, engine=True, again=2),
]
