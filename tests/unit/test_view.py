"""The page's server: who may ask, what it answers, and files that grow while it reads them."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner

from scope_megatron import cli
from scope_megatron.instruments.view.access import COOKIE
from scope_megatron.instruments.view.curves import MOST_POINTS, Curves
from scope_megatron.instruments.view.runs import differences, find_runs
from scope_megatron.instruments.view.search import ResponseQuery, Responses
from scope_megatron.instruments.view.server import STATIC, build_app
from scope_megatron.logging.rollouts import RolloutWriter
from tests.support.traces import write_trace
from tests.support.viewed_runs import Letters, response, write_metrics, write_responses

TOKEN = "a-long-token"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "made"
    write_metrics(output, 60)
    write_responses(output, [5, 10, 15], groups=2, samples=4)
    return output


def client(run: Path, token: str | None = None, host: str = "localhost") -> TestClient:
    return TestClient(build_app(find_runs([run]), token), base_url=f"http://{host}:8765")


def test_it_tells_of_a_run(run: Path) -> None:
    (told,) = client(run).get("/api/runs").json()
    assert (told["name"], told["state"], told["step"], told["steps"]) == (
        "made",
        "finished",
        60,
        60,
    )
    assert told["responses"] > 0 and "reward/mean" in told["metrics"]
    assert [event["kind"] for event in told["events"]] == ["start", "resume", "finish"]
    series = client(run).get("/api/curves?run=0&name=lr&first=10&last=19").json()["series"]["lr"]
    assert series["step"] == list(range(10, 20)) and len(series["mean"]) == 10


def test_it_finds_responses(run: Path) -> None:
    ask = client(run)
    every = ask.get("/api/responses?order=heaviest").json()
    assert every["total"] == 6 and every["matching"] == 24
    weights = [group["weight_max"] for group in every["groups"]]
    assert weights == sorted(weights, reverse=True)
    assert all(len(group["members"]) == 4 for group in every["groups"])
    wrong = ask.get("/api/responses?path=incorrect&first=6&last=10&order=disagree").json()
    assert {group["step"] for group in wrong["groups"]} == {10}
    expected = [m for g in wrong["groups"] for m in g["members"] if m["path"] == "incorrect"]
    assert wrong["matching"] == len(expected) > 0
    gaps = [group["gap_max"] for group in wrong["groups"]]
    assert gaps == sorted(gaps, reverse=True) and all(gaps)
    rows = ask.get("/api/group?kind=train&step=10&set=&group=1").json()
    assert [row["sample"] for row in rows] == [0, 1, 2, 3]
    assert all(len(row["tokens"]) == len(row["student_logprobs"]) for row in rows)
    assert not any("_top_" in name for row in rows for name in row), "asked for one by one"
    wrong = next(row for row in rows if row["path"] == "incorrect")
    where = f"kind=train&step=10&set=&group=1&sample={wrong['sample']}"
    best = ask.get(f"/api/alternatives?{where}&token=2").json()
    first, second = best["student"]
    assert (first["id"], first["token"]) == (wrong["token_ids"][2], wrong["tokens"][2])
    assert first["logprob"] == pytest.approx(wrong["student_logprobs"][2])
    assert second["id"] == 32 and best["teacher"][0]["token"] == "\x1b"
    right = next(row for row in rows if row["path"] == "correct")
    where = where.rpartition("=")[0] + f"={right['sample']}"
    assert ask.get(f"/api/alternatives?{where}&token=0").json()["teacher"] is None
    few = ask.get("/api/group?kind=train&step=10&set=&group=1&most=3").json()
    for row, whole in zip(few, rows, strict=True):
        assert row["tokens"] == whole["tokens"][:3] and row["entropy"] == whole["entropy"][:3]
        assert row["teacher_logprobs"] == (whole["teacher_logprobs"] or [None])[:3] or (
            row["teacher_logprobs"] is whole["teacher_logprobs"] is None
        )


def test_it_shows_a_step_of_the_trace(tmp_path: Path) -> None:
    write_metrics(tmp_path, 3)
    ask = client(tmp_path)
    assert ask.get("/api/traced?run=0").json() == []
    write_trace(tmp_path, [2, 3])
    assert ask.get("/api/traced?run=0").json() == [2, 3]
    picture = ask.get("/api/timeline?run=0&step=2")
    assert picture.headers["content-type"] == "image/png" and len(picture.content) > 5000
    assert ask.get("/api/timeline?run=0&step=9").status_code == 404
    assert ask.get("/api/timeline?run=0").status_code == 404


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/api/responses?order=random", 400),
        ("/api/responses?first=abc", 400),
        ("/api/curves?run=7", 404),
        ("/api/group?kind=train", 400),
        ("/api/group?kind=train&step=999&group=0", 404),
        ("/api/alternatives?kind=train&step=10&group=1&sample=0", 400),
        ("/api/alternatives?kind=train&step=10&group=1&sample=0&token=9999", 404),
        ("/api/alternatives?kind=train&step=10&group=1&sample=9&token=0", 404),
        ("/static/../server.py", 404),
        ("/static/%2e%2e/server.py", 404),
    ],
)
def test_what_it_cannot_answer(run: Path, path: str, code: int) -> None:
    assert client(run).get(path).status_code == code


def test_names_of_other_hosts_are_refused(run: Path) -> None:
    """A page elsewhere whose name points to this machine reads nothing."""
    assert client(run, host="evil.example").get("/api/runs").status_code == 403
    for host in ("127.0.0.1", "localhost", "[::1]"):
        assert client(run, host=host).get("/api/runs").status_code == 200


def test_a_token_is_asked_for(run: Path) -> None:
    ask = client(run, TOKEN, host="gpu-node")
    for wrong in ("/api/runs", "/", "/static/app.js", "/api/runs?token=another", "/?token="):
        assert ask.get(wrong).status_code == 403, wrong
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    assert ask.get("/api/runs", headers=bearer).status_code == 200
    answer = ask.get(f"/?token={TOKEN}", follow_redirects=False)
    assert answer.status_code == 303 and answer.headers["location"] == "/"
    assert "HttpOnly" in answer.headers["set-cookie"] and COOKIE in answer.headers["set-cookie"]
    assert ask.get("/api/runs").status_code == 200, "the cookie speaks from then on"


def test_the_page_asks_nobody_else_and_parses_no_text_as_html(run: Path) -> None:
    answer = client(run).get("/")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    for path in STATIC.iterdir():
        source = path.read_text(encoding="utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", source)
        assert not re.search(r"(src|href)=\"(https?:)?//|@import|from \"http", source), path


def test_metrics_that_grow_and_begin_anew(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "lr": 0.5}\n{"step": 2, "lr"')
    curves = Curves(path)
    curves.refresh()
    assert list(curves.steps) == [1], "a line that is half there waits"
    with path.open("a") as file:
        file.write(': null, "lr.nonfinite": "nan"}\n{"step": 3, "lr": 1.5}\n')
    curves.refresh()
    assert curves.series("lr")[0].tolist() == [1, 3] and curves.nonfinite == {"lr": 1}
    path.unlink()
    path.write_text('{"step": 1, "lr": 7.0}\n')
    curves.refresh()
    assert curves.series("lr")[1].tolist() == [7.0], "a resumed run has another file"


def test_long_curves_are_thinned(tmp_path: Path) -> None:
    lines = (json.dumps({"step": n, "x": float(n % 2)}) for n in range(1, 5 * MOST_POINTS + 1))
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    curves = Curves(tmp_path / "metrics.jsonl")
    curves.refresh()
    thin = curves.thinned("x", 0, 10**9)
    assert len(thin["step"]) == MOST_POINTS and thin["step"][0] == 1
    assert set(thin["low"]) == {0.0} and set(thin["high"]) == {1.0}
    assert min(thin["mean"]) >= 0.4 and max(thin["mean"]) <= 0.6


def test_responses_that_come_and_go(tmp_path: Path) -> None:
    draw = random.Random(0)
    writer = RolloutWriter(tmp_path, Letters(), (0, 1), 2**30)
    seen = Responses(tmp_path)
    seen.refresh()
    assert seen.find(ResponseQuery())["total"] == 0
    for step in (5, 10):
        writer.write("train", step, [response("2", 0, n, draw) for n in range(3)])
        seen.refresh()
        assert seen.find(ResponseQuery())["groups"][0]["step"] == step, "newest first"
    (tmp_path / "rollouts/step_00000010.parquet").unlink()
    assert [group["step"] for group in seen.find(ResponseQuery())["groups"]] == [5]
    assert seen.group("train", 10, "", 0) == []


def test_differences_between_configurations() -> None:
    rows = differences([{"seed": 1, "a.b": "x"}, {"seed": 2, "a.b": "x", "c": None}])
    assert {row["key"]: row["differs"] for row in rows} == {"seed": True, "a.b": False, "c": True}
    assert rows[2]["values"] == [None, "null"]


def test_runs_below_a_folder(run: Path) -> None:
    assert [found.name for found in find_runs([run.parent])] == ["made"]
    assert len(find_runs([run, run.parent])) == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nowhere"], "RUN: nowhere is no directory; give the output_dir of a run"),
        (["empty"], "RUN: empty holds no metrics.jsonl, nor does a directory in it"),
        (["empty", "--token", "short"], "--token: has fewer than 8 characters"),
        (["made", "--host", "192.0.2.7"], "--port: 192.0.2.7 port 8765 cannot be had"),
    ],
)
def test_wrong_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    write_metrics(Path("made"), 3)
    result = CliRunner().invoke(cli.app, ["view", *arguments])
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith(f"error: {told}") and result.stderr.count("\n") == 1
