"""Names of the hub, against a hub on the loopback address: what is fetched, each way it fails."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launch.cluster import Cluster
from launch.hub import with_caches
from launch.plan import LaunchRequest, plan
from scope_megatron.config import Config, ConfigError, load_config
from scope_megatron.config.names import pinned
from scope_megatron.data.dataset import open_dataset
from scope_megatron.data.tokenizer import load_tokenizer
from scope_megatron.hub import HubName, hub_name
from scope_megatron.hub.names import portable
from tests.support.hub_server import TOKEN, Hub, Repository, hub_server

ROOT = Path(__file__).parents[2]
ROWS = [{"problem": f"{i}+1", "solution": str(i + 1), "level": i % 3} for i in range(9)]

pytestmark = pytest.mark.timeout(120)
Load = Callable[..., Config]


@pytest.fixture
def hub() -> Iterator[Hub]:
    with hub_server() as hub:
        hub.add("org/student").push_folder(ROOT / "assets/tiny-student")
        hub.add("org/teacher").push_folder(ROOT / "assets/tiny-teacher")
        lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
        hub.add("org/sums", "datasets").push({"README.md": b"# sums\n", "train.jsonl": lines})
        yield hub


@pytest.fixture
def home(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Caches of this test alone, and its hub; the repository is the current directory."""
    import huggingface_hub.constants

    for name in [name for name in os.environ if name.startswith(("HF_", "TRANSFORMERS_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("SCOPE_MEGATRON_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)  # read at its import
    monkeypatch.chdir(ROOT)
    return tmp_path / "hf"


@pytest.fixture
def load(home: Path, tmp_path: Path) -> Load:
    """The quickstart's configuration with the student and the teacher by their names."""

    def run(*overrides: str) -> Config:
        names = [f"output_dir={tmp_path / 'out'}", "model.student=org/student"]
        names.append("model.teacher=org/teacher")
        return load_config("configs/quickstart.yaml", [*names, *overrides])

    return run


def error_of(load: Load, *overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        load(*overrides)
    assert len(error.value.problems) == 1
    return error.value.problems[0]


def command(verb: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """The command line in a process of its own, in the environment of ``home``."""
    return subprocess.Popen(
        [sys.executable, "-m", "scope_megatron", verb, "configs/quickstart.yaml", *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def teacher(hub: Hub) -> Repository:
    return hub.repositories["models", "org/teacher"]


def test_what_is_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "assets" / "tiny").mkdir(parents=True)
    assert hub_name("Qwen/Qwen2.5-1.5B") == HubName("Qwen/Qwen2.5-1.5B", "main")
    assert hub_name("org/m@refs/pr/1") == HubName("org/m", "refs/pr/1")
    paths = ("assets/tiny", "/a/b", "./a/b", "~/b", "a", "a/b/c", "data/train.jsonl", "../a")
    assert [hub_name(path) for path in paths] == [None] * len(paths)


def test_a_snapshot_is_written_down_as_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", "/hf")
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    commit = "0123456789" * 4
    inside = Path(f"/hf/hub/models--org--a--b/snapshots/{commit}")
    assert portable(inside) == f"org/a--b@{commit}"
    elsewhere = Path(f"/other/models--org--a/snapshots/{commit}")
    assert portable(elsewhere) == str(elsewhere)


def test_cold_then_warm_then_offline(
    hub: Hub, load: Load, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cold = load()
    assert capsys.readouterr().err.count("fetching org/") == 2
    assert len(hub.downloads()) == 10
    commit = teacher(hub).branches["main"]
    assert cold.model.teacher is not None and cold.model.teacher.name == commit
    assert f"teacher: org/teacher@{commit}\n" in cold.to_yaml()
    hub.requests.clear()
    assert load() == cold and capsys.readouterr().err == ""
    assert hub.downloads() == []
    hub.requests.clear()
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        with monkeypatch.context() as offline:
            offline.setenv(name, "1")
            assert load() == cold and capsys.readouterr().err == ""
    assert hub.requests == []
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert load() == cold
    assert capsys.readouterr().err.count("cannot be reached; going on with org/") == 2


def test_several_teachers_by_name(hub: Hub, load: Load, tmp_path: Path) -> None:
    several = ["model.teacher=null", "model.teachers={a: org/teacher, b: {path: org/teacher}}"]
    config = load(*several)
    commit = teacher(hub).branches["main"]
    assert {entry.path.name for entry in config.teachers.values()} == {commit}
    assert len(hub.downloads()) == 10, "the student and one teacher"
    (given,) = [text for text in pinned(config) if text.startswith("model.teachers=")]
    assert given.count(f"org/teacher@{commit}") == 2
    hub.requests.clear()
    assert load("model.teacher=null", *pinned(config)) == config and hub.requests == []
    line = error_of(load, "model.teacher=null", "model.teachers={a: org/none}")
    assert line.startswith("model.teachers.a: org/none is neither a path here nor a model on")


def test_commits_in_the_cache_ask_the_hub_nothing(hub: Hub, load: Load, tmp_path: Path) -> None:
    first = load("data.train=org/sums", "data.columns={prompt: problem, answer: solution}")
    overrides = pinned(first)
    assert [override.partition("@")[0] for override in overrides] == [
        "model.student=org/student",
        "model.teacher=org/teacher",
        'data.train=["org/sums',
    ]
    hub.requests.clear()
    again = load(*overrides, "data.columns={prompt: problem, answer: solution}")
    assert (again, hub.requests) == (first, [])
    (tmp_path / "again.yaml").write_text(first.to_yaml())
    assert load_config(tmp_path / "again.yaml") == first


def test_sizes_that_are_auto_follow_the_models_that_were_fetched(load: Load) -> None:
    assert load("parallel.tensor=auto").parallel.tensor == 2
    assert load("parallel.tensor=auto", "parallel.data=2").world_size == 2


@pytest.mark.parametrize("way", ["offline", "unreachable"])
def test_absent_without_a_network(
    load: Load, home: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    if way == "offline":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    else:
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    reason = {
        "offline": "HF_HUB_OFFLINE is set",
        "unreachable": "http://127.0.0.1:9 cannot be reached",
    }[way]
    assert error_of(load, "model.teacher=null", "algorithm.name=grpo").startswith(
        f"model.student: org/student@main is no path here and not whole in {home}/hub, and "
        f"{reason}; fetch it where there is a network (hf download org/student --revision main), "
        "set HF_HOME"
    )


def test_no_such_repository_or_revision(hub: Hub, load: Load) -> None:
    line = error_of(load, "model.teacher=org/none")
    assert line.startswith(
        f"model.teacher: org/none is neither a path here nor a model on {hub.endpoint}; "
    )
    line = error_of(load, "model.teacher=org/teacher@v2")
    assert line.startswith(f"model.teacher: org/teacher has no revision v2 on {hub.endpoint}; see ")


def test_a_wrong_setting_fetches_nothing(hub: Hub, load: Load) -> None:
    assert "is no file" in error_of(load, "data.train=none.jsonl")
    assert hub.requests == []


def test_gone_from_the_hub(hub: Hub, load: Load) -> None:
    load()
    commit = teacher(hub).branches["main"]
    del hub.repositories["models", "org/teacher"]
    assert error_of(load).endswith(f"or use the cached copy: org/teacher@{commit}")
    load(f"model.teacher=org/teacher@{commit}")


def test_moved_to_another_revision(hub: Hub, load: Load) -> None:
    load()
    before = teacher(hub).branches["main"]
    files = dict(teacher(hub).commits[before])
    files["config.json"] += b"\n"
    after = teacher(hub).push(files)
    hub.requests.clear()
    assert f"teacher: org/teacher@{after}\n" in load().to_yaml()
    assert [Path(request).name for request in hub.downloads()] == ["config.json"]
    older = load(f"model.teacher=org/teacher@{before}")
    assert f"teacher: org/teacher@{before}\n" in older.to_yaml()


def test_gated(
    hub: Hub, load: Load, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher(hub).gated = True
    line = error_of(load)
    assert line.startswith(f"model.teacher: org/teacher is gated on {hub.endpoint}; accept its")
    assert line.endswith("give a token: HF_TOKEN, or hf auth login")
    monkeypatch.setenv("HF_TOKEN", "hf_wrongwrongwrong")
    assert "is gated" in (line := error_of(load)) and "hf_wrong" not in line
    monkeypatch.delenv("HF_TOKEN")
    home.mkdir(exist_ok=True)
    (home / "token").write_text(TOKEN)  # where `hf auth login` puts it
    arguments = ["model.student=org/student", "model.teacher=org/teacher"]
    process = command("check", *arguments, f"output_dir={tmp_path / 'out'}")
    output, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors
    assert TOKEN not in output + errors
    (home / "token").unlink()
    holders = [p for p in tmp_path.rglob("*") if p.is_file() and TOKEN.encode() in p.read_bytes()]
    assert holders == []


@pytest.mark.parametrize("way", [pytest.param("cut", marks=pytest.mark.slow), "short"])
def test_cut_off_on_the_way(hub: Hub, load: Load, home: Path, way: str) -> None:
    """What came whole is kept; files are fetched side by side, so others may be missing too."""
    names = ["model.teacher=null", "algorithm.name=grpo"]
    getattr(hub, way)["model.safetensors"] = 1000
    line = error_of(load, *names)
    assert line.startswith("model.student: org/student came incompletely from http")
    assert "; run the command again" in line
    getattr(hub, way).clear()
    hub.requests.clear()
    whole = {path.name for path in home.rglob("snapshots/*/*")}
    assert "model.safetensors" not in whole
    load(*names)
    fetched = sorted(Path(request).name for request in hub.downloads())
    assert fetched == sorted({path.name for path in home.rglob("snapshots/*/*")} - whole)


def test_processes_of_a_node_fetch_once(hub: Hub, home: Path, tmp_path: Path) -> None:
    names = ["model.student=org/student", "model.teacher=org/teacher"]
    names.append(f"output_dir={tmp_path / 'out'}")
    jobs = [command("check", *names, RANK=str(r), LOCAL_RANK=str(r)) for r in range(2)]
    errors = [job.communicate(timeout=100)[1] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], errors
    assert len(hub.downloads()) == 10
    assert sum(text.count("fetching org/") for text in errors) == 2


@pytest.mark.slow
def test_data_by_name(hub: Hub, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["model.student=org/student", "data.eval=org/sums"]
    arguments += ["data.columns={prompt: problem, answer: solution}"]
    arguments += ["data.train={name: org/sums, filter: {level: [0, 1]}}"]
    process = command("data", *arguments)
    output, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors
    line = r"data.train: 6 prompts\n  org/sums@\w+: 6 usable, 0 skipped, 3 left"
    assert re.search(line, output)
    assert "data.eval: 9 prompts" in output and "|+|1|" in output
    fetched = {Path(request).name for request in hub.downloads()}
    assert "model.safetensors" not in fetched and "train.jsonl" in fetched


def test_sets_that_cannot_be_read(
    hub: Hub, load: Load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    config = load("data.train={name: org/sums, split: dev}")
    tokenizer = load_tokenizer(config.model.student)
    with pytest.raises(ValueError, match=r"org/sums@\w+ has no split dev; set split to train"):
        open_dataset(config, "data.train", config.data.train, tokenizer)
    config = load("data.train=org/sums")
    with pytest.raises(ValueError, match="has no column prompt; it has: problem, solution, level"):
        open_dataset(config, "data.train", config.data.train, tokenizer)
    line = error_of(load, "data.train=org/none")
    assert line.startswith("data.train: org/none is neither a path here nor a dataset on http")


def test_a_launch_passes_caches_and_commits_but_no_token(
    hub: Hub, load: Load, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "30")
    cluster = Cluster(container="image", env={"HF_ENDPOINT": "http://mirror"})
    local = load_config("configs/quickstart.yaml", [f"output_dir={tmp_path / 'out'}"])
    assert with_caches(cluster, [local]) == cluster
    told = with_caches(cluster, [load()])
    assert told.env == {
        "HF_HUB_ETAG_TIMEOUT": "30",
        "HF_ENDPOINT": "http://mirror",  # what the site says stays
        "HF_HOME": str(home),
        "HF_HUB_CACHE": f"{home}/hub",
        "SCOPE_MEGATRON_CACHE": str(tmp_path / "cache"),
    }
    assert told.mounts == [f"{path}:{path}" for path in (home, home / "hub", tmp_path / "cache")]
    assert with_caches(Cluster(), [load()]).mounts == []

    overrides = ["model.student=org/student", "model.teacher=org/teacher"]
    overrides += [f"output_dir={tmp_path / 'out'}", "data.eval=org/sums"]
    request = LaunchRequest(config="configs/quickstart.yaml", cluster=told, overrides=overrides)
    request.then = "evaluate"
    train, evaluation = plan(request)
    commit = hub.repositories["datasets", "org/sums"].branches["main"]
    for job in (train, evaluation):
        assert f"eval: org/sums@{commit}\n" in job.config.to_yaml()
        assert f"teacher: org/teacher@{teacher(hub).branches['main']}\n" in job.config.to_yaml()
    assert f"student: {tmp_path / 'out'}/hf\n" in evaluation.config.to_yaml()
