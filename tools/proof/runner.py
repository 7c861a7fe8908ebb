"""Runs parts in processes of their own: one that crashes or hangs ends no other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

from launch.code import ROOT
from scope_megatron.machine import DEVICE_VARIABLE
from tools.proof import machine
from tools.proof.record import Result
from tools.proof.registry import ProofPart

TAIL = 12  # lines of a crashed process's output that are shown


def run_parts(
    parts: Sequence[ProofPart],
    out: Path,
    *,
    rehearse: bool,
    say: Callable[[str], None] = print,
    missing: Callable[[str], str] = machine.missing,
) -> list[Result]:
    """All parts in order; neighbours that name the same process share one.

    ``missing`` says of a need why it is not met, or nothing.
    """
    out.mkdir(parents=True, exist_ok=True)
    available = machine.gpus() if not rehearse else 0
    results: list[Result] = []
    for name, members in groupby(parts, key=lambda part: part.process or part.name):
        together = []
        for part in members:
            if reason := left_out(part, available, rehearse, missing):
                results.append(Result(part.name, "left out", reason=reason))
                say(f"{part.name}: left out: {reason}")
            else:
                together.append(part)
        for result in _run_process(name, together, out, rehearse) if together else ():
            results.append(result)
            say(f"{result.part}: {result.outcome}, {result.seconds:.0f} s {result.reason}".rstrip())
    return results


def left_out(part: ProofPart, gpus: int, rehearse: bool, missing: Callable[[str], str]) -> str:
    """Why a part cannot run here, or the empty string."""
    if not rehearse and gpus < part.gpus:
        return f"needs {part.gpus} GPU{'s' * (part.gpus > 1)}, {gpus} found"
    for need in part.needs_rehearsing if rehearse else part.needs:
        if reason := missing(need):
            return reason
    return ""


def _run_process(name: str, parts: list[ProofPart], out: Path, rehearse: bool) -> Iterator[Result]:
    """The parts of one process. Those that it never came to end as it ended."""
    for part in parts:
        (out / f"{part.name}.json").unlink(missing_ok=True)
    command = [sys.executable, "-m", "tools.proof.child", "--out", str(out)]
    command += ["--rehearse"] if rehearse else []
    command += [f"{part.name}={part.place}" for part in parts]
    log = out / f"{name}.log"
    limit = sum(part.limit_s for part in parts)
    start = time.perf_counter()
    ended = _wait(command, _environment(parts[0], rehearse), log, limit)
    spent = time.perf_counter() - start
    first = True  # of those without a result: it was the one that ran
    for part in parts:
        path = out / f"{part.name}.json"
        if path.is_file():
            yield Result.of(json.loads(path.read_text(encoding="utf-8")))
        elif not first:
            yield Result(part.name, "crashed", reason="the process had ended before it")
        elif ended is None:
            yield Result(part.name, "timed out", spent, reason=f"after {limit:.0f} s; see {log}")
        else:
            reason = f"the process ended with {ended}; see {log}: {_last_line(log)}"
            yield Result(part.name, "crashed", spent, reason=reason)
        first = first and path.is_file()


def _wait(command: list[str], environment: dict[str, str], log: Path, limit: float) -> int | None:
    """The exit status, or None after the limit; nothing that it started is left."""
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            return process.wait(limit)
        except subprocess.TimeoutExpired:
            return None
        finally:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()


def _environment(part: ProofPart, rehearse: bool) -> dict[str, str]:
    """This process's, with the repository in front of what is installed."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    environment.setdefault("OMP_NUM_THREADS", "1")
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        environment.pop(name, None)
    environment[DEVICE_VARIABLE] = "cpu" if rehearse else "cuda"
    if rehearse:
        environment |= {"CUDA_VISIBLE_DEVICES": ""} | dict(part.rehearsed_with)
    return environment


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else "it printed nothing"


def tail(log: Path) -> str:
    """The end of a process's output."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-TAIL:])
