from __future__ import annotations

import errno
import io
import json
import math
import os
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.utils._python_dispatch import TorchDispatchMode

from scope_megatron.logging.console import Console
from scope_megatron.logging.logger import MetricLogger, rewind
from scope_megatron.logging.metrics import PhaseTimer, StepMetrics


def rows(path: Path) -> list[dict]:
    """Every line, by a strict parser: NaN and Infinity are no JSON."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} in JSON")

    lines = path.read_text().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def logger(run_dir: Path, **options: object) -> MetricLogger:
    settings = {"tensorboard": False, "wandb_project": None, "config_dict": {}, "enabled": True}
    return MetricLogger(run_dir, **{**settings, **options})


# --- MetricLogger


def test_a_line_is_on_disk_sorted_and_valid_json_with_nan(tmp_path: Path) -> None:
    log = logger(tmp_path)
    log.log(1, {"z": 1.5, "a": math.nan, "m": -math.inf, "count": 3})
    line = (tmp_path / "metrics.jsonl").read_text()  # before close: flushed
    row = json.loads(line)
    assert list(row) == sorted(row)
    assert rows(tmp_path / "metrics.jsonl") == [
        {
            "step": 1,
            "z": 1.5,
            "a": None,
            "a.nonfinite": "nan",
            "m": None,
            "m.nonfinite": "-inf",
            "count": 3,
        }
    ]
    log.close()
    log.close()


def test_resume_drops_the_steps_done_again_and_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with logger(tmp_path) as log:
        for step in range(6):
            log.log(step, {"loss": float(step)})
    with path.open("a") as file:
        file.write('{"step": 6, "lo')  # killed while writing
    with logger(tmp_path, start_step=3) as log:
        log.log(4, {"loss": 40.0})
    assert [(row["step"], row["loss"]) for row in rows(path)] == [
        (0, 0.0),
        (1, 1.0),
        (2, 2.0),
        (3, 3.0),
        (4, 40.0),
    ]
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_new_run_keeps_the_metrics_of_an_earlier_attempt(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        with logger(tmp_path, start_step=-1) as log:
            log.log(step, {})
    names = ["metrics.jsonl", "metrics.1.jsonl", "metrics.2.jsonl"]
    assert [rows(tmp_path / name)[0]["step"] for name in names] == [3, 1, 2]


def test_a_full_disk_is_told_once_and_loses_no_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with logger(tmp_path) as log:
        log.log(1, {"loss": 1.0})
        log._file, disk = FullDisk(log._file), log._file
        for step in (2, 3, 4):
            log.log(step, {"loss": 1.0})
        assert capsys.readouterr().err == (
            f"{tmp_path / 'metrics.jsonl'} is not written: No space left on device; "
            "the run goes on\n"
        )
        log._file = disk
        log.log(5, {"loss": 1.0})
    assert [row["step"] for row in rows(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5]


class FullDisk:
    """Takes five more bytes of one line, then none."""

    def __init__(self, file: Any) -> None:
        self.file, self.room, self.name = file, 5, file.name

    def write(self, data: bytes) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written, self.room = self.file.write(data[: self.room]), 0
        return written


def test_rewind_that_dies_before_the_rename_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n')
    before = path.read_bytes()

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        rewind(path, 1)
    assert path.read_bytes() == before


def test_without_start_step_a_torn_line_does_not_swallow_the_next(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"st')
    with logger(tmp_path) as log:
        log.log(2, {"loss": 1.0})
    assert json.loads(path.read_text().splitlines()[-1]) == {"step": 2, "loss": 1.0}


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    with logger(tmp_path / "run", enabled=False, tensorboard=True, wandb_project="p") as log:
        log.log(1, {"loss": 1.0})
    assert not (tmp_path / "run").exists()


def test_tensorboard_holds_each_step_once_after_a_resume(tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    with logger(tmp_path, tensorboard=True) as log:
        for step in (1, 2, 3):
            log.log(step, {"loss": float(step)})
    with logger(tmp_path, tensorboard=True, start_step=1) as log:
        log.log(2, {"loss": 20.0})
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 1.0), (2, 20.0)]


@pytest.mark.skipif(find_spec("wandb") is not None, reason="wandb is installed")
def test_missing_wandb_names_the_setting(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="logging.wandb_project"):
        logger(tmp_path, wandb_project="p")


# --- PhaseTimer


def test_timer_adds_up_a_phase_and_starts_again() -> None:
    waits: list[str] = []
    timer = PhaseTimer(synchronize=lambda: waits.append("sync"))
    for _ in range(2):
        with timer("rollout"):
            time.sleep(0.02)
    with pytest.raises(RuntimeError), timer("train"):
        raise RuntimeError
    seconds = timer.pop()
    assert seconds.keys() == {"time/rollout", "time/train"}
    assert 0.04 <= seconds["time/rollout"] < 1.0
    assert waits == ["sync", "sync"]
    assert timer.pop() == {}


# --- StepMetrics


def step_metrics() -> StepMetrics:
    return StepMetrics(sums=["tokens", "masked"], means=["ppl", "absent"], maxima=["diff", "none"])


def test_single_process_reduction() -> None:
    metrics = step_metrics()
    metrics.sum("tokens", 3)
    metrics.sum("tokens", torch.tensor(4, dtype=torch.int64))
    metrics.mean("ppl", torch.tensor(6.0, requires_grad=True), count=3)
    metrics.mean("ppl", 4.0)
    metrics.maximum("diff", -2.0)
    metrics.maximum("diff", torch.tensor(-1.0))
    assert metrics.reduce() == {"tokens": 7.0, "masked": 0.0, "ppl": 2.5, "diff": -1.0}
    assert metrics.reduce() == {"tokens": 0.0, "masked": 0.0}, "not cleared"


def test_undeclared_names_and_nan_are_not_lost() -> None:
    metrics = step_metrics()
    with pytest.raises(KeyError, match="not declared as a mean"):
        metrics.mean("tokens", 1.0)
    metrics.mean("ppl", math.nan)
    for value in (1.0, math.nan, 2.0):
        metrics.maximum("diff", value)
    reduced = metrics.reduce()
    assert math.isnan(reduced["ppl"])
    assert reduced["diff"] == math.inf


def test_counts_above_float32_stay_exact() -> None:
    metrics = step_metrics()
    metrics.sum("tokens", torch.tensor(2.0**25, dtype=torch.float32))
    metrics.sum("tokens", torch.tensor(1.0))
    assert metrics.reduce()["tokens"] == 2**25 + 1


def test_the_hosts_numbers_go_to_the_device_in_one_copy() -> None:
    """To a GPU each copy is one more to wait for."""
    names = [f"n{i:02}" for i in range(50)]
    metrics = StepMetrics(sums=names)
    for i, name in enumerate(names):
        metrics.sum(name, torch.tensor(float(i)) if i % 7 == 0 else float(i))
    made: list[str] = []

    class Made(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            made.append(func.overloadpacket.__name__)
            return func(*args, **kwargs or {})

    with Made():
        reduced = metrics.reduce()
    assert list(reduced.values()) == [float(i) for i in range(50)]
    assert made.count("lift_fresh") == 1  # a tensor of numbers that the host has


def reduce_on_rank(rank: int, store: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    calls = []
    all_reduce = dist.all_reduce
    dist.all_reduce = lambda *args, **kw: (calls.append(1), all_reduce(*args, **kw))[1]
    metrics = step_metrics()
    metrics.sum("tokens", 10 + rank)
    if rank == 1:  # rank 0 had nothing to record
        metrics.mean("ppl", 9.0, count=3)
        metrics.maximum("diff", 0.5)
    reduced = metrics.reduce(dist.group.WORLD)
    assert reduced == {"tokens": 21.0, "masked": 0.0, "ppl": 3.0, "diff": 0.5}, reduced
    assert len(calls) == 2, "one collective for the sums, one for the maxima"
    dist.destroy_process_group()


def test_two_ranks_with_different_records_agree(tmp_path: Path) -> None:
    mp.spawn(reduce_on_rank, args=(str(tmp_path / "store"),), nprocs=2)


# --- Console

STEP = {
    "reward/mean": 0.4375,
    "path/correct": 14.0,
    "path/incorrect": 17.0,
    "path/masked": 1.0,
    "loss/total": 0.1234,
    "loss/mle": 0.1,
    "loss/kl": 0.0234,
    "grad_norm": 0.71,
    "time/rollout": 1.26,
    "time/score": 0.5,
    "time/train": 2.0,
    "time/sync": 0.1,
    "time/step": 4.0,
    "tokens/total": 48000.0,
    "eval/avg@8": 0.5,
    "eval/pass@8": 0.755,
}


def test_without_a_terminal_a_step_is_one_plain_line_with_the_numbers() -> None:
    out = io.StringIO()
    with Console(enabled=True, total_steps=80, file=out) as console:
        console.start()
        console.step(3, STEP)
    (line,) = out.getvalue().splitlines()
    for text in (
        "step 3/80",
        "reward 0.438",
        "14 correct, 17 incorrect, 1 masked",
        "loss 0.1234 (mle 0.1, kl 0.0234)",
        "rollout 1.3s score 0.5s train 2.0s sync 0.1s",
        "step 4.0s",
        "12,000 tokens/s",
        "Avg@8 50.0 Pass@8 75.5",
    ):
        assert text in line
    assert "\x1b" not in line


def test_missing_and_nonfinite_metrics_do_not_stop_a_run() -> None:
    out = io.StringIO()
    console = Console(enabled=True, total_steps=0, file=out)
    console.header("run", {})
    console.start()
    console.step(1, {})
    console.step(
        2, {"reward/mean": math.nan, "loss/total": None, "tokens/total": 5, "time/step": 0}
    )
    console.evaluation_table({}, {})
    console.evaluation_table({"eval/avg@8": 0.1}, {"eval/pass@8": math.nan})
    console.interrupted(None, "scope-megatron train")
    console.close()
    assert "reward nan" in out.getvalue()


def test_evaluation_table_gives_the_change_in_points() -> None:
    out = io.StringIO()
    before = {"eval/avg@8": 0.125, "eval/pass@32": 0.75, "eval/pass@8": 0.5}
    after = {"eval/avg@8": 0.5, "eval/pass@32": 0.75, "eval/pass@8": 0.4}
    Console(enabled=True, total_steps=1, file=out).evaluation_table(before, after)
    cells = [line.split() for line in out.getvalue().splitlines() if "@" in line]
    assert cells == [
        ["Avg@8", "12.5", "50.0", "+37.5", "points"],
        ["Pass@8", "50.0", "40.0", "-10.0", "points"],
        ["Pass@32", "75.0", "75.0", "+0.0", "points"],
    ]


def test_the_command_to_go_on_is_one_line_and_other_ranks_are_silent() -> None:
    command = "scope-megatron train configs/[x].yaml " + "resume=auto " * 30
    out, silent = io.StringIO(), io.StringIO()
    for enabled, file in ((True, out), (False, silent)):
        console = Console(enabled=enabled, total_steps=5, file=file)
        console.header("run [bold]", {"student": "[red]x"})
        console.start()
        console.step(1, STEP)
        console.message("[notice] saved")
        console.evaluation(1, STEP)
        console.evaluation_table(STEP, STEP)
        console.interrupted("runs/[a]/step_3", command)
        console.close()
    assert f"    {command}" in out.getvalue().splitlines()
    for text in ("runs/[a]/step_3", "[notice] saved", "[red]x", "run [bold]"):
        assert text in out.getvalue()
    assert silent.getvalue() == ""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_live_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    out = Terminal()
    with Console(enabled=True, total_steps=80, file=out) as console:
        console.start()
        console.step(3, STEP)
        console.step(4, {**STEP, "reward/mean": 0.5})
    assert "\x1b[" in out.getvalue()
    assert "0.500" in out.getvalue() and "step 4/80" in out.getvalue()


def test_an_ascii_stdout_does_not_crash() -> None:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii")
    console = Console(enabled=True, total_steps=2, file=out)
    console.header("run", {"student": "modèle"})
    console.step(1, STEP)
    console.message("modèle")
    console.evaluation_table(STEP, STEP)
    out.flush()
    assert b"step 1/2" in raw.getvalue()
