"""A rank dies or stops: the run ends within seconds, says who, and goes on from its checkpoint."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from scope_megatron.trace.files import read_trace
from tests.support import kd_run


def test_killed_rank_is_named_and_the_run_restarts(tmp_path: Path) -> None:
    end = ("train.steps=20", "checkpoint.every=5", "faults.restarts=1")
    end = (*end, "logging.trace.steps=[1,20]")
    process = kd_run.start(tmp_path, *end)
    kd_run.wait_for_step(process, tmp_path, 7)
    victim = kd_run.rank_process(process, 1)
    victim.send_signal(signal.SIGKILL)
    code, output, _ = kd_run.finish(process, within_s=120)
    assert code == 0, output
    assert "error: rank 1 was ended by SIGKILL" in output
    named = next(line for line in output.splitlines() if "went away" in line)
    assert f"pid {victim.pid}; step " in named and "phase " in named
    assert "restart 1 of 1" in output
    assert "Traceback" not in output
    steps = [row["step"] for row in kd_run.rows(tmp_path)]
    assert steps == list(range(1, 21)), "every step once"
    trace = read_trace(tmp_path / "run")
    assert trace is not None and trace.steps() == steps, "of both attempts"
    assert {span.lane for span in trace.spans} == {"step", "checkpoint"}
    json.loads((tmp_path / "run/trace/trace.json").read_text())


@pytest.mark.parametrize("rank", [0, 1])
def test_stopped_rank_is_found_and_named(tmp_path: Path, rank: int) -> None:
    process = kd_run.start(tmp_path, "faults.heartbeat_timeout_s=4")
    kd_run.wait_for_step(process, tmp_path, 3)
    victim = kd_run.rank_process(process, rank)
    victim.send_signal(signal.SIGSTOP)
    code, output, _ = kd_run.finish(process, within_s=150)
    assert code == 3, output
    named = next(line for line in output.splitlines() if "no sign of life" in line)
    assert named.startswith(f"error: rank {rank} (") and f"pid {victim.pid}; step " in named
    stacks = (tmp_path / "run/stacks" / f"rank_{1 - rank:05d}.txt").read_text()
    assert "no sign of life" in stacks
    # inside the step, or between two steps, where ranks agree whether to go on
    assert "trainer.py" in stacks or "run.py" in stacks


def test_ranks_end_with_their_launcher(tmp_path: Path) -> None:
    process = kd_run.start(tmp_path)
    kd_run.wait_for_step(process, tmp_path, 3)
    process.send_signal(signal.SIGKILL)
    kd_run.finish(process, within_s=150)  # no rank is left
    assert (tmp_path / "run/checkpoints/latest").exists(), "they saved before they ended"
