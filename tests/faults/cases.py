"""The faults. Each is put into a real run of two ranks, which has to end well all the same."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.faults.stage import Impossible, Missed, Outcome, Running, Stage
from tests.support import kd_run

Body = Callable[[Stage], Outcome]
FAULT_AT = 4  # of 8 steps


@dataclass(frozen=True)
class Case:
    name: str
    body: Body
    engine: bool = False  # with vLLM and the verifier; otherwise a supervised run, which is shorter
    timeout_s: float = 120.0
    again: int = 1  # steps that may have to be made again: the one in flight

    @property
    def steps(self) -> int:
        return 3 if self.engine else 8


def killed(
    phase: str, rank: int = 1, step: int = FAULT_AT, overrides: tuple[str, ...] = ()
) -> Body:
    """kill -9 of a rank, from inside, at the beginning of a phase; faults.restarts goes on."""

    def body(stage: Stage) -> Outcome:
        stage.inject("kill", phase, step, rank=rank)
        run = stage.start("faults.restarts=1", *overrides)
        return restarted(stage, run, rf"rank {rank} was ended by SIGKILL", rank)

    return body


def restarted(stage: Stage, run: Running, pattern: str, rank: int | None = None) -> Outcome:
    """What became of a run that faults.restarts had to start again. ``rank`` must be named."""
    at, step = stage.injected(run)
    noticed, said = run.said(pattern)
    if rank is not None:
        run.said(rf"rank {rank} \(.*step \d+, phase ")
    run.said("restart 1 of 1")
    run.finish(0)
    return Outcome(noticed - at, stage.again(run, step), "faults.restarts", said)


def same_command(stage: Stage, begun: int, noticed_s: float, said: str) -> Outcome:
    """Go on from what a run left, by the same command."""
    run = stage.start("resume=auto")
    run.finish(0)
    return Outcome(noticed_s, stage.again(run, begun), "same command", said)


def stopped(
    rank: int, phase: str = "train", step: int = FAULT_AT, overrides: tuple[str, ...] = ()
) -> Body:
    def body(stage: Stage) -> Outcome:
        stage.inject("stop", phase, step, rank=rank)
        run = stage.start("faults.restarts=1", *overrides)
        return restarted(stage, run, rf"rank {rank} \(.*no sign of life", rank)

    return body


def hang(stage: Stage) -> Outcome:
    stage.inject("hang", "train", FAULT_AT)
    run = stage.start("faults.restarts=1", "faults.hang_timeout_s=5")
    return restarted(stage, run, r"rank 1 \(.*made no progress", 1)


def defect(stage: Stage) -> Outcome:
    """No restart: the same would happen again. Once mended, the same command goes on."""
    stage.inject("raise", "train", FAULT_AT)
    run = stage.start("faults.restarts=1")
    at, step = stage.injected(run)
    noticed, said = run.said("injected: a defect")
    run.finish(1)
    return same_command(stage, step, noticed - at, said)


def torchrun(stage: Stage) -> Outcome:
    stage.inject("kill", "train", FAULT_AT)
    program = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2")
    program += ("--max-restarts", "1", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0")
    run = stage.start("resume=auto", program=program)
    at, step = stage.injected(run)
    noticed, said = run.said(r"rank 1 \(.*went away")
    run.finish(0)
    return Outcome(noticed - at, stage.again(run, step), "torchrun --max-restarts", said)


def launcher_killed(stage: Stage) -> Outcome:
    """Its ranks get a SIGTERM from the system, save and end."""
    run = stage.start("train.steps=100000", "checkpoint.every=0")
    stage.reach(run, FAULT_AT)
    at = time.time()
    run.process.send_signal(signal.SIGKILL)
    run.finish(-signal.SIGKILL)
    seconds = time.time() - at
    stage.steps = stage.done() + 4
    return same_command(stage, stage.done(), seconds, "all ranks are gone")


def asked_to_stop(signum: signal.Signals) -> Body:
    def body(stage: Stage) -> Outcome:
        run = stage.start("train.steps=100000", "checkpoint.every=0")
        stage.reach(run, FAULT_AT)
        at = time.time()
        run.process.send_signal(signum)
        run.finish(128 + signum)
        seconds = time.time() - at
        stage.steps = stage.done() + 4
        return same_command(stage, stage.done(), seconds, "saved and ended")

    return body


# ---------------------------------------------------------------- checkpoints


def damaged(damage: Callable[[Path], int], line: str) -> Body:
    """Between two runs something happens to the newest checkpoint. ``damage`` gets the directory
    of all and returns how many steps it takes away at most."""

    def body(stage: Stage) -> Outcome:
        last, first = stage.steps, stage.steps // 2
        stage.start(f"train.steps={first}").finish(0)
        allowed = damage(stage.output / "checkpoints")
        at = time.time()
        run = stage.start("resume=auto")
        noticed, said = run.said(line)
        run.finish(0)
        stage.steps = last
        again = stage.again(run, first)
        if again > allowed:
            raise Missed(f"{again} steps were made again, {allowed} had to be")
        return Outcome(noticed - at, again, "same command", said)

    return body


def newest(root: Path) -> Path:
    return max(root.glob("step_*"))


def largest(root: Path) -> Path:
    return max(newest(root).rglob("*.distcp"), key=lambda path: path.stat().st_size)


def flip_bit(root: Path) -> int:
    path = largest(root)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return 1


def truncate(root: Path) -> int:
    path = largest(root)
    os.truncate(path, path.stat().st_size - 100)
    return 1


def remove_file(root: Path) -> int:
    largest(root).unlink()
    return 1


def tear(root: Path) -> int:
    """As a machine leaves it that went off without our fsync: files that are there, and empty."""
    for path in newest(root).rglob("*.distcp"):
        os.truncate(path, 0)
    return 1


def spoil_latest(root: Path) -> int:
    (root / "latest").write_bytes(b"\x00\xff\x00\n")
    return 0


class SmallDisk:
    """A file system of its own for output_dir."""

    def __init__(self, path: Path, mib: int) -> None:
        self.path, self.mib = path, mib

    def __enter__(self) -> SmallDisk:
        self.path.mkdir()
        options = ["mount", "-t", "tmpfs", "-o", f"size={self.mib}m", "none", str(self.path)]
        if subprocess.run(options, check=False).returncode:
            raise Impossible("mounting a tmpfs is not permitted here")
        return self

    def __exit__(self, *exc: object) -> None:
        subprocess.run(["umount", "-l", str(self.path)], check=True)

    def fill(self, leave_bytes: int) -> None:
        with (self.path / "filler").open("wb") as file:
            file.write(bytes(max(0, shutil.disk_usage(self.path).free - leave_bytes)))

    def free(self) -> None:
        (self.path / "filler").unlink()


def disk_full(stage: Stage) -> Outcome:
    """Full during a save; later there is room again."""
    stage.steps = 100
    with SmallDisk(stage.directory / "disk", 64) as disk:
        stage.output = disk.path / "run"
        run = stage.start("checkpoint.every=10", "checkpoint.asynchronous=true")
        run.until(lambda: (stage.output / "checkpoints" / "latest").exists(), "a checkpoint")
        disk.fill(leave_bytes=200_000)
        at = time.time()
        noticed, said = run.said(r"No space left on device")
        disk.free()
        run.finish(0)
        stage.check()
        stage.check_resume()
        stage.output = stage.directory / "run"
        stage.output.mkdir()
        shutil.copy(disk.path / "run" / "metrics.jsonl", stage.output)
    return Outcome(noticed - at, 0, "same run", said)


# ---------------------------------------------------------------- numbers and data


def nan_once(stage: Stage) -> Outcome:
    stage.inject("nan gradient", "train", FAULT_AT)
    run = stage.start()
    at, _ = stage.injected(run)
    noticed, said = run.said("a loss or gradient is not finite")
    run.finish(0)
    skipped = [row["step"] for row in stage.rows() if row.get("update/skipped")]
    if skipped != [FAULT_AT]:
        raise Missed(f"skipped updates: {skipped}")
    stage.check_resume()
    return Outcome(noticed - at, 0, "same run", said)


def nan_in_a_row(stage: Stage) -> Outcome:
    stage.inject("nan gradient", "train", FAULT_AT, FAULT_AT + 1, FAULT_AT + 2)
    run = stage.start("faults.restarts=1")
    at, step = stage.injected(run)
    noticed, said = run.said("a loss or gradient is not finite")
    run.said(r"faults.nonfinite_updates: 3 updates in a row")
    run.finish(5)
    return same_command(stage, step + 2, noticed - at, said)


def corrupt_row(stage: Stage) -> Outcome:
    lines = kd_run.write_data(stage.directory).read_bytes().splitlines(keepends=True)
    data = stage.directory / "bad.jsonl"
    lines[9] = b'{"prompt": "1+1", "ans\n'
    lines[19] = b"\x80\xfe" + lines[19]
    data.write_bytes(b"".join(lines))
    at = time.time()
    run = stage.start(f"data.train={data}")
    noticed, said = run.said(r"skipped .*bad.jsonl:10\b")
    run.said(r"skipped .*bad.jsonl:20\b")
    run.said(r"62 prompts, 2 rows skipped")
    run.finish(0)
    return Outcome(noticed - at, 0, "same run", said)


# ---------------------------------------------------------------- engine, verifier, teacher


def engine_once(stage: Stage) -> Outcome:
    stage.inject("engine once", "rollout", 2)
    run = stage.start()
    at, _ = stage.injected(run)
    noticed, said = run.said("warning: vLLM failed .*its requests are made again")
    run.finish(0)
    stage.check_resume()
    return Outcome(noticed - at, 0, "same run", said)


def engine_always(stage: Stage) -> Outcome:
    stage.inject("engine always", "rollout", 2)
    run = stage.start("faults.restarts=1")
    return restarted(stage, run, "error: rollout.engine: vLLM failed")


def teacher_nan(stage: Stage) -> Outcome:
    """On every rank, as a teacher's wrong weight would have it."""
    stage.inject("nan teacher", "score", 2, rank=None)
    run = stage.start()
    at, _ = stage.injected(run)
    run.until(lambda: stage.done() >= 2, "step 2")
    noticed = time.time()
    run.finish(0)
    unscored = {row["step"]: row["path/unscored"] for row in stage.rows()}
    if unscored != {1: 0, 2: 1, 3: 0}:
        raise Missed(f"path/unscored: {unscored}")
    stage.check_resume()
    return Outcome(noticed - at, 0, "same run", "path/unscored 1 in metrics.jsonl")


def verifier(action: str) -> Body:
    """A verifier process is hit while it works on a response; that one is masked, not wrong."""

    def body(stage: Stage) -> Outcome:
        stage.inject(action, "verify", 2, rank=0)
        run = stage.start("verifier.timeout_s=3")
        at, _ = stage.injected(run)
        row = run.until(lambda: masked(stage), "a response that nobody judged")
        noticed = time.time()
        run.finish(0)
        if [row["path/masked"] for row in stage.rows()] != [0, 1, 0]:
            raise Missed(f"path/masked: {[row['path/masked'] for row in stage.rows()]}")
        stage.check_resume()
        return Outcome(noticed - at, 0, "same run", f"path/masked 1 at step {row['step']}")

    return body


def masked(stage: Stage) -> dict[str, float] | None:
    return next((row for row in stage.rows() if row["path/masked"]), None)


ENGINE_AT = 2
CASES = [
    Case("kill -9 of rank 1, in score", killed("score")),
    Case("kill -9 of rank 1, in train", killed("train")),
    Case("kill -9 of rank 0, in train", killed("train", rank=0)),
    Case("kill -9 of rank 1, in the first step", killed("train", step=1)),
    Case("kill -9 of rank 1, as a save begins", killed("save")),
    Case("kill -9 of rank 0, in a save, no manifest yet", killed("manifest", rank=0)),
    Case("kill -9 of rank 0, in the first save", killed("manifest", rank=0, step=1)),
    Case(
        "kill -9 of rank 1, the checkpoint before still in the background",
        killed("train", overrides=("checkpoint.asynchronous=true",)),
        again=2,
    ),
    Case("kill -9 of rank 1 under torchrun", torchrun),
    Case("kill -9 of the launcher", launcher_killed),
    Case("SIGTERM", asked_to_stop(signal.SIGTERM)),
    Case("SIGINT", asked_to_stop(signal.SIGINT)),
    Case("SIGSTOP of rank 0", stopped(0)),
    Case("SIGSTOP of rank 1", stopped(1)),
    Case("hang of rank 1 (hang_timeout_s=5)", hang),
    Case("exception in rank 1", defect),
    Case("checkpoint: one bit flipped", damaged(flip_bit, "is damaged")),
    Case("checkpoint: file truncated", damaged(truncate, "is damaged")),
    Case("checkpoint: file missing", damaged(remove_file, "is damaged")),
    Case("checkpoint: torn, files empty", damaged(tear, "is damaged")),
    Case("checkpoint: latest unreadable", damaged(spoil_latest, "latest is damaged")),
    Case("disk full during saves", disk_full),
    Case("NaN in a gradient of rank 1, once", nan_once),
    Case("NaN in a gradient, 3 in a row", nan_in_a_row),
    Case("corrupt rows of data", corrupt_row),
    Case("kill -9 of rank 1, in rollout", killed("rollout", step=ENGINE_AT), engine=True),
    Case("kill -9 of rank 1, in verify", killed("verify", step=ENGINE_AT), engine=True),
    Case("kill -9 of rank 1, in sync", killed("sync", step=ENGINE_AT), engine=True),
    Case(
        "kill -9 of rank 1, in evaluate",
        killed("evaluate", step=ENGINE_AT, overrides=("evaluation.every=2",)),
        engine=True,
    ),
    Case("engine: exception in a rollout", engine_once, engine=True),
    Case("engine: fails again", engine_always, engine=True),
    Case("teacher: NaN score", teacher_nan, engine=True),
    Case("verifier process: kill -9", verifier("verifier kill"), engine=True),
    Case("verifier process: hangs", verifier("verifier stop"), engine=True),
]
