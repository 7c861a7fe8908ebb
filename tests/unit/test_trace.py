"""Spans, the clock that they are on, the files that hold them, and the picture of a step."""

from __future__ import annotations

import json
import random
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
from typer.testing import CliRunner

from scope_megatron import cli
from scope_megatron.config.sections.logging import TraceConfig
from scope_megatron.instruments.report.timeline import kind_of, strips, write_timeline
from scope_megatron.logging.overlap import hidden_line, hidden_shares
from scope_megatron.trace import spans
from scope_megatron.trace.clock import Clock, ClockServer
from scope_megatron.trace.files import RankFile, begin_trace, merge, read_trace
from scope_megatron.trace.spans import Recorder, span, traced_errand, traced_step
from tests.support.traces import write_trace
from tests.support.viewed_runs import write_metrics


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    yield
    spans.stop()


def record(output: Path, rank: int = 0, steps: list[int] | None = None, every: int = 1) -> None:
    settings = TraceConfig(steps=[1, 100] if steps is None else steps, every=every)
    file = RankFile(output, rank, f"rank {rank} ({'samples' if rank else 'trains'}, here)")
    spans.start(Recorder(file, Clock(), settings.covers))


def events(path: Path) -> list[dict[str, Any]]:
    """Of a rank's file, as a viewer reads the array that nobody has closed."""
    text = path.read_text()
    assert text.startswith("[\n") and text.endswith("},\n")
    found: list[dict[str, Any]] = json.loads(text.removesuffix(",\n") + "]")
    return found


def make_step(step: int) -> None:
    with traced_step(step), span("rollout"):
        with span("sample", prompts=4):
            time.sleep(0.002)
        with span("wait for engines"):
            time.sleep(0.002)


def test_spans_of_the_steps_that_are_asked_for(tmp_path: Path) -> None:
    record(tmp_path, steps=[2, 5], every=2)
    for step in range(1, 7):
        make_step(step)
    spans.stop()
    found = [e for e in events(tmp_path / "trace/rank_00000.json") if e["ph"] == "X"]
    assert [e["name"] for e in found if e["args"]["step"] == 2] == [
        "sample",
        "wait for engines",
        "rollout",
        "step 2",
    ]
    assert {e["args"]["step"] for e in found} == {2, 4}
    by_name = {e["name"]: e for e in found if e["args"]["step"] == 2}
    assert by_name["sample"]["args"]["prompts"] == 4 and by_name["sample"]["dur"] >= 2000
    for inner, outer in (("sample", "rollout"), ("rollout", "step 2")):
        inside, around = by_name[inner], by_name[outer]
        assert around["ts"] <= inside["ts"]
        assert inside["ts"] + inside["dur"] <= around["ts"] + around["dur"]
    assert abs(by_name["step 2"]["ts"] / 1e6 - time.time()) < 60, "times of day"


def test_a_phase_that_is_over_is_on_the_disk(tmp_path: Path) -> None:
    record(tmp_path)
    with traced_step(1):
        for phase in ("rollout", "verify"):
            with span(phase), span("sample"):
                pass
            found = [e["name"] for e in events(tmp_path / "trace/rank_00000.json")]
            assert found[-2:] == ["sample", phase]


def test_off_nothing_is_made_and_nothing_written(tmp_path: Path) -> None:
    assert span("a") is span("b", "grading", responses=3)
    make_step(1)
    traced_errand(1, 1)
    spans.flush()
    record(tmp_path, steps=[50, 60])
    make_step(1)
    spans.stop()
    assert not list(tmp_path.iterdir())


def test_what_goes_on_after_its_step_is_kept(tmp_path: Path) -> None:
    record(tmp_path, steps=[1, 1])
    begun, go_on = threading.Event(), threading.Event()

    def save() -> None:
        with span("write step_00000001", "checkpoint"):
            begun.set()
            go_on.wait()

    thread = threading.Thread(target=save)
    with traced_step(1):
        thread.start()
        begun.wait()
    make_step(2)
    go_on.set()
    thread.join()
    spans.stop()
    trace = read_trace(tmp_path)
    assert trace is not None
    assert [(s.name, s.lane, s.step) for s in trace.spans if s.lane == "checkpoint"] == [
        ("write step_00000001", "checkpoint", 1)
    ]
    assert trace.steps() == [1]


def test_a_rank_that_samples_shows_both_batches(tmp_path: Path) -> None:
    """At lag 1 step 3 trains on what was sampled beside step 2; step 4 is sampled beside it."""
    record(tmp_path, rank=1, steps=[3, 3])
    for step in range(1, 7):
        traced_errand(step, 1)
        with span("rollout"):
            pass
    spans.stop()
    trace = read_trace(tmp_path)
    assert trace is not None and [s.step for s in trace.spans] == [3, 4]
    assert trace.spans[-1].ended - trace.spans[-1].begun < 1e6


def test_an_error_is_named_and_its_step_is_not_whole(tmp_path: Path) -> None:
    record(tmp_path)
    make_step(1)
    with pytest.raises(RuntimeError), traced_step(2), span("train"):
        raise RuntimeError("a peer is gone")
    trace = read_trace(tmp_path)
    assert trace is not None and trace.steps() == [1]
    assert [s.name for s in trace.spans if s.facts.get("error") == "RuntimeError"] == [
        "step 2",
        "train",
    ]


def test_a_file_that_was_cut_off_anywhere_is_read_and_gone_on_with(tmp_path: Path) -> None:
    record(tmp_path)
    for step in (1, 2):
        make_step(step)
    spans.stop()
    path = tmp_path / "trace/rank_00000.json"
    whole, draw = path.read_bytes(), random.Random(0)
    for cut in [0, 1, 2, *(draw.randrange(len(whole)) for _ in range(40))]:
        path.write_bytes(whole[:cut])
        lines = whole[:cut].splitlines(keepends=True)
        complete = [line for line in lines if line.endswith(b"\n") and b'"ph":"X"' in line]
        trace = read_trace(tmp_path)
        assert len(trace.spans if trace else []) == len(complete)
        merged = merge(tmp_path)
        assert merged is not None
        kinds = [e["ph"] for e in json.loads(merged.read_text())["traceEvents"]]
        assert kinds.count("X") == len(complete)
        record(tmp_path)
        make_step(3)
        spans.stop()
        assert events(path)[-1]["name"] == "step 3"


def test_a_new_run_sets_the_trace_of_an_earlier_one_aside(tmp_path: Path) -> None:
    for done in (0, 0, 7):
        begin_trace(tmp_path, done)
        record(tmp_path)
        make_step(done + 1)
        spans.stop()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["trace", "trace.1"]
    trace = read_trace(tmp_path)
    assert trace is not None and trace.steps() == [1, 8]


def test_a_disk_that_takes_nothing_is_told_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "trace").write_text("a file in the way")
    record(tmp_path)
    for step in (1, 2):
        make_step(step)
    said = capsys.readouterr().err
    assert said.count("warning: logging.trace: ") == 1 and "the run goes on" in said


def test_clocks_of_two_nodes_agree(tmp_path: Path) -> None:
    """The server's clock is five seconds ahead; the other node measures as much."""
    server = ClockServer("127.0.0.1")
    server._offset += 5_000_000_000
    here, there = Clock(server.address), Clock(server.address, node="another")
    assert here.describe() == "rank 0's clock" and here.error_ns == 0
    there.measure()
    assert there.error_ns is not None and there.error_ns < 1_000_000_000
    now = time.perf_counter_ns()
    expected = (now + server._offset) // 1000
    assert abs(there.microseconds(now) - expected) <= there.error_ns // 1000 + 1
    assert there.describe().startswith("rank 0's clock within ")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unused:
        unused.bind(("127.0.0.1", 0))
        silent = replace(server.address, port=unused.getsockname()[1])
    lost = Clock(silent, node="another")
    lost.measure()
    assert lost.describe() == "this node's time of day: rank 0 did not answer"
    assert abs(lost.microseconds(time.perf_counter_ns()) / 1e6 - time.time()) < 1.0


@pytest.fixture
def traced(tmp_path: Path) -> Path:
    """A run of one training and one sampling rank."""
    write_metrics(tmp_path, 10)
    write_trace(tmp_path, [1, 2])
    return tmp_path


def test_one_file_for_all_ranks(traced: Path) -> None:
    path = merge(traced)
    assert path is not None
    merged = json.loads(path.read_text())
    found = merged["traceEvents"]
    assert {e["pid"] for e in found} == {0, 1}
    names = {e["args"]["name"] for e in found if e["name"] == "process_name"}
    assert names == {"rank 0 (trains, here)", "rank 1 (samples, here)"}
    lanes = {e["args"]["name"] for e in found if e["name"] == "thread_name"}
    assert lanes == {"step", "grading"}
    assert all(isinstance(e["ts"], int) and e["dur"] >= 0 for e in found if e["ph"] == "X")


def test_the_report_shows_a_step(traced: Path) -> None:
    result = CliRunner().invoke(cli.app, ["report", str(traced)])
    assert result.exit_code == 0, result.output
    assert f"time line: {traced / 'timeline.png'}" in result.stdout
    pixels = matplotlib.image.imread(traced / "timeline.png")
    assert pixels.shape[1] == 1400 and pixels[..., :3].std() > 0.05, "an empty picture"
    html = (traced / "report.html").read_text()
    assert html.count("data:image/png;base64,") == 2 and "<h2>Time line</h2>" in html
    wrong = CliRunner().invoke(cli.app, ["report", str(traced), "--step", "7"])
    assert wrong.exit_code == 2
    assert "--step: 7 cannot be drawn: the trace has 1 to 2; " in wrong.output
    assert "\n" not in wrong.output.strip().split("error: ")[-1]


def test_strips_of_a_rank(traced: Path) -> None:
    trace = read_trace(traced)
    assert trace is not None
    first = strips(s for s in trace.spans if s.rank == 0 and s.step == 1)
    assert [[s.name for s in strip.spans] for strip in first] == [
        ["rollout"],
        ["sample", "wait for engines"],
        ["grade"],
    ]
    kinds = {s.name: kind_of(s) for s in trace.spans}
    assert kinds["wait for engines"] == "waiting" and kinds["grade"] == "grading"


def test_without_a_trace_there_is_no_picture(tmp_path: Path) -> None:
    assert write_timeline(tmp_path) is None
    with pytest.raises(ValueError, match=r"^--step: 3 cannot be drawn: the run has no trace"):
        write_timeline(tmp_path, 3)


def test_hidden_shares_by_hand() -> None:
    """Engines take 8 + 2 s; the training ranks had 5 s of other work and waited 6 s: 4 s hidden."""
    seconds = {"engine_s": 8.0, "grading_s": 2.0, "graded_s": 8.0, "beside_s": 5.0, "hidden_s": 4.0}
    values = {f"sampling/{name}": value for name, value in seconds.items()}
    assert hidden_shares(values) == pytest.approx(
        {"overlap/sampling_hidden": 0.8, "overlap/grading_hidden": 0.75}
    )
    streamed = values | {"sampling/scored_s": 3.0, "sampling/ahead_s": 2.25, "sampling/beside_s": 0}
    assert hidden_shares(streamed) == pytest.approx(
        {"overlap/teacher_hidden": 0.75, "overlap/grading_hidden": 0.75}
    )
    assert hidden_shares({"time/step": 3.0}) == {}


def test_what_was_hidden_in_words() -> None:
    given = {"overlap/grading_hidden": [0.0] * 5 + [0.5] * 20}
    line = hidden_line(lambda name: (range(25), given.get(name, [])))
    assert line == "Hidden in the last 20 steps, on average: 50 % of grading."
    assert hidden_line(lambda name: ([], [])) is None
