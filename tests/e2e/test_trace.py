"""A trace changes no bit of a run, wherever engines are, and agrees with the metrics beside it.

python -m pytest -m study tests/e2e/test_trace.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scope_megatron.trace.files import Trace
from tests.e2e.golden_losses import APART, LAYOUTS, SETTINGS
from tests.support import kd_run
from tests.support.traces import overlapped, require_trace, seconds_of

STEPS = 5
SMALL = ("rollout.prompts_per_step=8", "rollout.group_size=4", f"train.steps={STEPS}")
PLACEMENTS = {  # (settings, training ranks, sampling ranks)
    "colocated": (LAYOUTS["tensor2"], 2, 0),
    "lag0": ((*APART["lag1"], "rollout.lag=0"), 1, 1),
    "lag1": (APART["lag1"], 1, 1),
}
CLOCKS = ("time/", "sampling/", "overlap/", "memory/")


def run(directory: Path, *more: str) -> list[dict[str, Any]]:
    """The steps' metrics that do not depend on the time."""
    directory.mkdir()
    settings = ("configs/quickstart.yaml", f"output_dir={directory / 'run'}", *SETTINGS, *SMALL)
    code, output, _ = kd_run.finish(kd_run.launch([*settings, *more], {}), within_s=200)
    assert code == 0, output
    rows = kd_run.rows(directory)
    return [{k: v for k, v in row.items() if not k.startswith(CLOCKS)} for row in rows]


@pytest.mark.study
@pytest.mark.timeout(420)
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_trace_changes_no_bit(placement: str, tmp_path: Path) -> None:
    settings, ranks, samplers = PLACEMENTS[placement]
    plain = run(tmp_path / "plain", *settings)
    traced = run(tmp_path / "traced", *settings, "logging.trace.steps=[1,100]")
    assert plain == traced and len(plain) == STEPS
    assert not (tmp_path / "plain/run/trace").exists()
    trace = require_trace(tmp_path / "traced/run", ranks, STEPS, samplers)
    if samplers:
        require_shares(trace, tmp_path / "traced", lag=int(placement == "lag1"))


def require_shares(trace: Trace, directory: Path, lag: int) -> None:
    """The metrics of what was hidden, made anew from spans of both ranks."""
    rows = {row["step"]: row for row in kd_run.rows(directory)}
    for step in range(2 + lag, STEPS + 1):
        batch = [s for s in trace.spans if s.rank == 1 and s.step == step]
        sampled = [s for s in batch if s.name in ("rollout", "verify")]
        asked_in = [s for s in trace.spans if s.rank == 0 and s.step == step - lag]
        waited = [s for s in asked_in if s.name.startswith("wait for") and s.lane == "step"]
        hidden = seconds_of(sampled) - overlapped(sampled, waited)
        beside = rows[step]["sampling/beside_s"]
        share = hidden / min(seconds_of(sampled), beside)
        print(f"step {step}: by spans {share:.3f}, metric", rows[step]["overlap/sampling_hidden"])
        assert rows[step]["overlap/sampling_hidden"] == pytest.approx(min(share, 1.0), abs=0.1)
        if not lag:
            ahead = [s for s in asked_in if s.name == "score ahead"]
            teacher = rows[step]["sampling/scored_s"]
            assert seconds_of(ahead) == pytest.approx(teacher, rel=0.05, abs=0.01)
