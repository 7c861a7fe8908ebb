"""One fault's run: start it, watch what it says and when, look at what it left."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.support import kd_run

INJECT = kd_run.ROOT / "tests" / "faults" / "inject"


class Missed(AssertionError):
    """The run did not do what it should have."""


class Impossible(Exception):
    """The fault cannot be made on this machine."""


@dataclass
class Outcome:
    """A row of the table."""

    noticed_s: float  # from the fault to the line that tells of it
    again: int  # steps begun before the fault that had to be made again
    went_on: str  # how it went on: "same run", "restarts", "same command", "torchrun"
    said: str  # that line


class Running:
    """A started run, its lines with their times, and every process it ever had."""

    def __init__(self, process: subprocess.Popen[str], deadline: float) -> None:
        self.process, self._deadline = process, deadline
        self.lines: list[tuple[float, str]] = []
        self.family: dict[int, psutil.Process] = {process.pid: psutil.Process(process.pid)}
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        threading.Thread(target=self._follow, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append((time.time(), line.rstrip()))

    def _follow(self) -> None:
        while any(one.is_running() for one in list(self.family.values())):
            for one in list(self.family.values()):
                try:
                    for child in one.children(recursive=True):
                        self.family.setdefault(child.pid, child)
                except psutil.Error:
                    pass
            time.sleep(0.3)

    @property
    def text(self) -> str:
        return "\n".join(line for _, line in self.lines)

    def find(self, pattern: str) -> tuple[float, str] | None:
        """The first line that has the pattern, and when it came."""
        return next((one for one in list(self.lines) if re.search(pattern, one[1])), None)

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        """Wait for it; the run may end meanwhile only if the condition holds then."""
        while not (value := condition()):
            ended = self.process.poll() is not None and not self._reader.is_alive()
            if ended and not (value := condition()):
                raise Missed(f"the run ended ({self.process.returncode}) without {what}")
            if value:
                return value
            self._in_time(what)
            time.sleep(0.05)
        return value

    def said(self, pattern: str) -> tuple[float, str]:
        return self.until(lambda: self.find(pattern), f"a line with {pattern!r}")

    def finish(self, *codes: int) -> int:
        """Wait for the end, which must have one of the codes and leave no process."""
        while self.process.poll() is None:
            self._in_time("an end")
            time.sleep(0.05)
        self._reader.join(5)
        _, alive = psutil.wait_procs(list(self.family.values()), timeout=10)
        if alive:
            names = [f"{one.pid} {' '.join(one.cmdline())[:80]}" for one in alive]
            self.kill()
            raise Missed(f"left behind: {names}")
        if self.process.returncode not in codes:
            raise Missed(f"exit code {self.process.returncode}, expected {codes}")
        return self.process.returncode

    def _in_time(self, what: str) -> None:
        if time.monotonic() > self._deadline:
            raise Missed(f"no {what} in time")

    def rank(self, number: int) -> psutil.Process:
        return kd_run.rank_process(self.process, number)

    def kill(self) -> None:
        for one in self.family.values():
            if one.is_running():
                one.kill()


class Stage:
    """A directory for a case, its runs, and the checks that every case ends with."""

    def __init__(self, directory: Path, timeout_s: float, engine: bool, steps: int) -> None:
        self.directory, self.engine, self.steps = directory, engine, steps
        self._deadline = time.monotonic() + timeout_s
        self.output = directory / "run"
        self._fault: dict[str, Any] | None = None
        self.runs: list[Running] = []
        directory.mkdir(parents=True, exist_ok=True)

    def inject(self, action: str, phase: str, *steps: int, rank: int | None = 1) -> None:
        """In all runs that start from now on; once for each of the steps."""
        marker = str(self.directory / "injected")
        self._fault = {
            "action": action,
            "phase": phase,
            "steps": steps,
            "rank": rank,
            "marker": marker,
        }

    def start(self, *overrides: str, program: tuple[str, ...] = ()) -> Running:
        common = (f"train.steps={self.steps}", "checkpoint.every=1")
        common += ("checkpoint.asynchronous=false", *overrides)
        if self.engine:
            arguments = self._engine_settings(*common)
        else:
            arguments = kd_run.settings(self.directory, *common)
        arguments = [a for a in arguments if a != f"output_dir={self.directory / 'run'}"]
        arguments.insert(1, f"output_dir={self.output}")
        environment = {"PYTHONPATH": os.pathsep.join([str(INJECT), str(kd_run.ROOT)])}
        if self._fault is not None:
            environment["SCOPE_FAULT"] = json.dumps(self._fault)
        process = kd_run.launch(arguments, environment, program)
        self.runs.append(Running(process, self._deadline))
        return self.runs[-1]

    def _engine_settings(self, *overrides: str) -> list[str]:
        return [
            *kd_run.settings(self.directory)[:3],
            "rollout.prompts_per_step=4",
            "rollout.group_size=4",
            "rollout.max_response_tokens=64",
            "rollout.engine.kv_cache_gib=0.05",
            "rollout.engine.max_num_seqs=16",
            "checkpoint.export_hf=false",
            "evaluation.every=0",
            "evaluation.before=false",
            "evaluation.after=false",
            "evaluation.limit=4",
            "evaluation.samples=2",
            "logging.tensorboard=false",
            *overrides,
        ]

    def rows(self) -> list[dict[str, Any]]:
        path = self.output / "metrics.jsonl"
        if not path.exists():
            return []
        lines = path.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def done(self) -> int:
        return max((row["step"] for row in self.rows()), default=0)

    def reach(self, run: Running, step: int) -> None:
        run.until(lambda: self.done() >= step, f"step {step}")

    def injected(self, run: Running) -> tuple[float, int]:
        """When the fault came, and at which step."""

        def first() -> tuple[float, int] | None:
            found = [
                (path.read_text(), int(path.suffix[1:]))
                for path in self.directory.glob("injected.*")
            ]
            times = [(float(text), step) for text, step in found if text]
            return min(times, default=None)

        return run.until(first, "the fault")

    def again(self, run: Running, begun: int) -> int:
        """Steps made again, where ``begun`` were begun before the fault."""
        resumed = run.find(r"resumed from .* after step")
        after = int(re.findall(r"after step (\d+)", resumed[1])[-1]) if resumed else 0
        return begun - after

    def check(self) -> None:
        """Every step stands once in the metrics, and the newest checkpoint is one to go on from."""
        counts = Counter(row["step"] for row in self.rows())
        if counts != Counter(range(1, self.steps + 1)):
            raise Missed(f"metrics.jsonl: steps {dict(counts)} instead of 1..{self.steps}, once")

    def check_resume(self) -> None:
        """After a run that never ended by the fault: it can be gone on with."""
        self._fault, self.steps = None, self.steps + 1
        run = self.start("resume=auto")
        run.finish(0)
        if not run.find(rf"resumed from .* after step {self.steps - 1}\b"):
            raise Missed("the newest checkpoint was not resumed from")
        self.check()

    def close(self) -> None:
        for run in self.runs:
            run.kill()
