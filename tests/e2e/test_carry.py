"""Groups left for the next step: a killed run and one that repeats it agree to the bit."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

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


def killed_run(directory: Path, layout: str) -> list[dict[str, Any]]:
    """A sampling rank is killed between two checkpoints; the metrics of each step."""
    process = start(directory, layout, "faults.restarts=1")
    kd_run.wait_for_step(process, directory, SAVED + 1)
    victim = kd_run.rank_process(process, 1 if layout == "one replica" else 3)
    victim.send_signal(signal.SIGKILL)
    code, output, _ = kd_run.finish(process, within_s=240)
    assert code == 0, output
    assert "restart 1 of 1" in output and "after step" in output
    rows = kd_run.rows(directory)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1)), "every step once"
    left = [row["sampling/left"] for row in rows]
    assert any(left) and all(share <= 0.5 for share in left) and left[-1] == 0, left
    for before, row in zip(left, rows[1:], strict=False):
        assert (row["staleness/share"] > 0) == (row["staleness/steps"] == 1) == (before > 0)
    responses = [row["path/correct"] + row["path/incorrect"] + row["path/masked"] for row in rows]
    assert sum(responses) == STEPS * 8 * 4, "every response once"
    return rows


def repeated_run(directory: Path, layout: str) -> list[dict[str, Any]]:
    code, output, _ = kd_run.finish(start(directory, layout), within_s=240)
    assert code == 0, output
    return kd_run.rows(directory)


def record_of(run: Path) -> list[dict[str, Any]]:
    lines = (run / "run" / outputs.CARRIED).read_text().splitlines()
    return [json.loads(line) for line in lines]


def give(record: list[dict[str, Any]], run: Path) -> None:
    (run / "run").mkdir(parents=True)
    text = "".join(json.dumps(row) + "\n" for row in record)
    (run / "run" / outputs.CARRIED).write_text(text)


@pytest.mark.study
@pytest.mark.timeout(900)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_killed_run_is_repeated_bit_for_bit(layout: str, tmp_path: Path) -> None:
    """First with what happened to be left, then with groups left at every step, so that the
    checkpoint which is resumed holds some."""
    killed, repeated = tmp_path / "killed", tmp_path / "repeated"
    killed.mkdir()
    rows, record = killed_run(killed, layout), record_of(killed)
    assert [row["step"] for row in record] == list(range(1, STEPS + 1)), "decided once"
    give(record, repeated)
    assert numbers(repeated_run(repeated, layout)) == numbers(rows)
    assert record_of(repeated) == record
    always = [row | {"left": [number % 8, (number + 3) % 8]} for number, row in enumerate(record)]
    always[-1]["left"] = []
    killed, repeated = tmp_path / "killed_always", tmp_path / "repeated_always"
    give(always, killed)
    give(always, repeated)
    rows = killed_run(killed, layout)
    assert [row["sampling/left"] for row in rows] == [0.25] * (STEPS - 1) + [0.0]
    assert numbers(repeated_run(repeated, layout)) == numbers(rows)
