"""Groups left for the next step: a killed run and one that repeats it agree bit for bit."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from scope_megatron import outputs
from tests.e2e.golden_losses import APART, SETTINGS
from tests.e2e.test_lag import numbers
from tests.support import kd_run

STEPS, SAVED = 6, 2
LAYOUTS = {
    "one replica": (*APART["lag1"], "rollout.lag=0"),
    "two replicas": (*APART["lag1"], "rollout.lag=0", "parallel.data=2", "rollout.ranks=2"),
}


def start(directory: Path, layout: str, *more: str) -> subprocess.Popen[str]:
    settings = [s for s in SETTINGS if not s.startswith(("train.steps", "checkpoint.every"))]
    return kd_run.launch(
        [
            *("configs/quickstart.yaml", f"output_dir={directory / 'run'}", *settings),
            *(*LAYOUTS[layout], "rollout.prompts_per_step=8", "rollout.group_size=4"),
            *("rollout.carry_over=0.5", f"train.steps={STEPS}", f"checkpoint.every={SAVED}"),
            *("resume=auto", *more),
        ],
        {},
    )


@pytest.mark.study
@pytest.mark.timeout(500)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_killed_run_is_repeated_bit_for_bit(layout: str, tmp_path: Path) -> None:
    """A sampling rank is killed between two checkpoints. The second run has the first one's record
    of what was left, and is never killed."""
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    killed.mkdir()
    process = start(killed, layout, "faults.restarts=1")
    kd_run.wait_for_step(process, killed, SAVED + 1)
    victim = kd_run.rank_process(process, 1 if layout == "one replica" else 3)
    victim.send_signal(signal.SIGKILL)
    code, output, _ = kd_run.finish(process, within_s=240)
    assert code == 0, output
    assert "restart 1 of 1" in output and f"after step {SAVED}" in output
    rows = kd_run.rows(killed)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1)), "every step once"
    left = [row["sampling/left"] for row in rows]
    assert any(left) and all(share <= 0.5 for share in left) and left[-1] == 0, left
    assert left[SAVED - 1] > 0, "what is carried over is part of the checkpoint that is resumed"
    for before, row in zip(left, rows[1:], strict=False):
        assert (row["staleness/share"] > 0) == (row["staleness/steps"] == 1) == (before > 0)
    responses = [row["path/correct"] + row["path/incorrect"] + row["path/masked"] for row in rows]
    assert sum(responses) == STEPS * 8 * 4, "every response once"
    (whole / "run").mkdir(parents=True)
    shutil.copy(killed / "run" / outputs.CARRIED, whole / "run")
    code, output, _ = kd_run.finish(start(whole, layout), within_s=240)
    assert code == 0, output
    assert numbers(kd_run.rows(whole)) == numbers(rows)
    lines = (whole / "run" / outputs.CARRIED).read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, STEPS + 1))
