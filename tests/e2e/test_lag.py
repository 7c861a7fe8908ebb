"""One step ahead: the batch in flight survives, and both kinds of ranks may be killed."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import golden_losses
from tests.e2e.golden_losses import APART, COLUMNS, SETTINGS
from tests.support import kd_run

STEPS, SAVED = 6, 2
SMALL = ("rollout.prompts_per_step=8", "rollout.group_size=4")


def start(directory: Path, *more: str) -> subprocess.Popen[str]:
    settings = [s for s in SETTINGS if not s.startswith(("train.steps", "checkpoint.every"))]
    return kd_run.launch(
        [
            *("configs/quickstart.yaml", f"output_dir={directory / 'run'}", *settings),
            *APART["lag1"],
            *(f"train.steps={STEPS}", f"checkpoint.every={SAVED}", *more),
        ],
        {},
    )


def numbers(rows: list[dict[str, Any]]) -> list[dict[str, float]]:
    return [{name: row.get(name, 0.0) for name in COLUMNS} for row in rows if "reward/mean" in row]


@pytest.mark.study
@pytest.mark.timeout(290)
def test_a_killed_sampling_rank_is_named_and_changes_nothing(tmp_path: Path) -> None:
    """The restarted run goes on with the batch that was in flight when it was saved."""
    process = start(tmp_path, "faults.restarts=1")
    kd_run.wait_for_step(process, tmp_path, SAVED + 1)
    victim = kd_run.rank_process(process, 1)
    victim.send_signal(signal.SIGKILL)
    code, output, _ = kd_run.finish(process, within_s=180)
    assert code == 0, output
    assert "rank 1 was ended by SIGKILL" in output and "restart 1 of 1" in output
    assert any("rank 1 (" in line and "phase " in line for line in output.splitlines()), output
    rows = kd_run.rows(tmp_path)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1)), "every step once"
    assert [row["staleness/steps"] for row in rows] == [0.0, *[1.0] * (STEPS - 1)]
    assert all(0.5 < row["staleness/ratio_ess"] <= 1.0 + 1e-6 for row in rows)
    written_on, golden = golden_losses.read()
    if golden_losses.processor() == written_on and "lag1" in golden:
        found = numbers(rows)
        for row, expected in zip(found, golden["lag1"], strict=False):
            assert row == {name: pytest.approx(expected[name], rel=1e-6) for name in COLUMNS}
    (first,) = numbers(rows[:1])
    colocated = golden["tensor2"][0]
    assert first == {name: pytest.approx(colocated[name], rel=1e-3) for name in COLUMNS}


@pytest.mark.study
@pytest.mark.timeout(1500)
def test_random_kills_of_both_kinds_end_bit_identical(tmp_path: Path) -> None:
    """Ranks of both kinds are killed at random times; each run goes on from its checkpoint."""
    whole = tmp_path / "whole"
    whole.mkdir()
    code, output, _ = kd_run.finish(start(whole, *SMALL), within_s=240)
    assert code == 0, output
    code, output, _ = kd_run.finish(start(whole, *SMALL, "resume=auto"), within_s=60)
    assert code == 0 and "is finished" in output, "no rank waits for the other kind"
    expected = numbers(kd_run.rows(whole))
    draw = random.Random(12)
    for number in range(3):
        directory = tmp_path / f"killed_{number}"
        directory.mkdir()
        process = start(directory, *SMALL, "faults.restarts=3")
        for step in sorted(draw.sample(range(1, STEPS), 2)):
            kd_run.wait_for_step(process, directory, step)
            time.sleep(draw.random())
            if process.poll() is None:
                kd_run.rank_process(process, draw.randrange(2)).send_signal(signal.SIGKILL)
                time.sleep(2.0)
        code, output, _ = kd_run.finish(process, within_s=300)
        assert code == 0, output
        assert numbers(kd_run.rows(directory)) == expected, f"run {number} differs"
