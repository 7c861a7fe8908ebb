"""A run by names, from a hub on the loopback address: model, tokenizer and data, two ranks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.hub_server import TOKEN, Hub, hub_server
from tests.support.kd_run import ROOT, finish, launch, rows, settings

COLUMNS = "data.columns={prompt: problem, answer: solution, response: solution}"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with hub_server() as hub:
        hub.add("org/student").push_folder(ROOT / "assets/tiny-student")
        lines = (ROOT / "assets/arithmetic/train.jsonl").read_text().splitlines()[:64]
        problems = [json.loads(line) for line in lines]
        sums = hub.add("org/sums", "datasets")
        sums.push({"README.md": b"# sums\n", "data/train.jsonl": _lines(problems)})
        problems[5]["answer"] += "0"
        sums.push({"README.md": b"# sums\n", "data/train.jsonl": _lines(problems)}, "next")
        sums.gated = True
        yield hub


def _lines(problems: list[dict[str, str]]) -> bytes:
    rows = [{"problem": row["prompt"], "solution": row["answer"]} for row in problems]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.fixture
def train(hub: Hub, tmp_path: Path) -> Callable[..., tuple[int, str]]:
    def run(*overrides: str, **environment: str) -> tuple[int, str]:
        names = ["model.student=org/student", "model.teacher=null", "data.train=org/sums", COLUMNS]
        base = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": TOKEN}
        base["HF_HUB_OFFLINE"] = "0"
        base |= {"SCOPE_MEGATRON_CACHE": str(tmp_path / "cache")}
        arguments = settings(tmp_path, "checkpoint.every=2", *names, *overrides)
        return finish(launch(arguments, base | environment), within_s=150)[:2]

    return run


@pytest.mark.timeout(580)
def test_a_run_by_names(hub: Hub, tmp_path: Path, train: Callable[..., tuple[int, str]]) -> None:
    code, output = train("train.steps=2")
    assert code == 0, output
    losses = [row["loss/total"] for row in rows(tmp_path)]
    assert len(losses) == 2
    fetched = hub.downloads()
    assert len(fetched) == len(set(fetched)) == 7, fetched  # README.md and the rows; five files
    commit = hub.repositories["datasets", "org/sums"].branches["main"]
    saved = b"".join(p.read_bytes() for p in tmp_path.glob("run/checkpoints/**/*") if p.is_file())
    assert f"org/sums@{commit}".encode() in saved  # a checkpoint knows what it was trained on

    # Offline, the tokenised rows and the folder of checkpoints' own copy gone: the same prompts.
    shutil.rmtree(tmp_path / "cache")
    hub.requests.clear()
    code, output = train("train.steps=3", "resume=auto", HF_HUB_OFFLINE="1", HF_TOKEN="")
    assert code == 0, output
    assert "resumed from" in output and hub.requests == []

    code, output = train("train.steps=4", "resume=auto", "data.train=org/sums@next")
    assert code == 2, output
    error = next(line for line in output.splitlines() if line.startswith("error: "))
    after = hub.repositories["datasets", "org/sums"].branches["next"]
    assert "data.train: differs from the run that wrote" in error
    assert f"revision of set 1 is {after[:12]}, was {commit[:12]}" in error

    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert TOKEN.encode() not in path.read_bytes(), path
    assert TOKEN not in output
