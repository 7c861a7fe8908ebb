"""The command line: exit codes, one line for users, nothing heavy before the settings are right."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from scope_megatron import cli
from scope_megatron.config import Config, load_config, modeldir
from scope_megatron.instruments.commands.common import must_launch, print_warnings, user_errors
from tests.support.config_run import make_run
from tests.unit.test_config_errors import CASES, read_golden
from tests.unit.test_lock import start

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return make_run(tmp_path, monkeypatch)


@pytest.mark.parametrize("name", ["unknown_key", "tokenizers_differ", "weights_truncated"])
def test_a_bad_setting_needs_no_torch(name: str, run: Path) -> None:
    change, overrides = CASES[name]
    change()
    code = (
        "import atexit, runpy, sys\n"
        "heavy = {'torch', 'transformers', 'vllm', 'megatron'}\n"
        "atexit.register(lambda: print(sorted(heavy & set(sys.modules))))\n"
        f"sys.argv = ['scope-megatron', 'train', 'run.yaml', *{overrides!r}]\n"
        "runpy.run_module('scope_megatron', run_name='__main__')\n"
    )
    env = os.environ | {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert done.stderr == read_golden()[name] + "\n"
    assert done.stdout == "[]\n"


def test_check_lists_every_problem(run: Path) -> None:
    bad = ["objective.tau=0", "train.stpes=1"]
    result = CliRunner().invoke(cli.app, ["check", "run.yaml", *bad])
    assert result.exit_code == 2
    assert [line.split(";")[0] for line in result.stderr.splitlines()] == [
        "error: unknown key train.stpes",
        "error: objective.tau: is 0 but must be > 0",
    ]


def test_check_prints_a_config_that_loads(run: Path) -> None:
    result = CliRunner().invoke(cli.app, ["check", "run.yaml", "seed=7"])
    assert result.exit_code == 0
    assert Config.model_validate(yaml.safe_load(result.stdout)).seed == 7


@pytest.mark.parametrize(
    ("given", "warned"),
    [
        ([], True),
        (["objective.kl=reverse_kl", "objective.teacher_temperature=0.5"], True),
        (["objective.teacher_temperature=as_rollout"], False),
        (["objective.teacher_temperature=0.6"], False),
        (["rollout.temperature=1.0"], False),
        (["algorithm.name=grpo"], False),
    ],
)
def test_another_temperature_of_the_teacher_is_told(
    run: Path, given: list[str], warned: bool
) -> None:
    """By `check`, and by `train` before anything else: here the run's directory is in use."""
    told = "warning: objective.teacher_temperature: is "
    result = CliRunner().invoke(cli.app, ["check", "run.yaml", *given])
    assert (result.exit_code, result.stderr.count(told)) == (0, int(warned))
    holder = start(run / "run", child_s=0.0)
    try:
        result = CliRunner().invoke(cli.app, ["train", "run.yaml", *given])
    finally:
        holder.kill()
        holder.wait(10)
    lines = result.stderr.splitlines()
    assert [line.startswith(told) for line in lines] == ([True, False] if warned else [False])
    assert lines[-1].startswith("error: output_dir: run is in use by process")


def test_one_rank_of_a_job_warns(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = load_config("run.yaml")
    for rank, lines in (("0", 1), ("1", 0), ("8", 0)):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("LOCAL_RANK", "0")
        print_warnings(settings)
        assert capsys.readouterr().err.count("\n") == lines


def test_one_rank_of_a_node_speaks(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for rank, local_rank, lines in (("0", "0", 1), ("1", "1", 0), ("8", "0", 1)):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("LOCAL_RANK", local_rank)
        result = CliRunner().invoke(cli.app, ["train", "run.yaml", "objective.tau=0"])
        assert (result.exit_code, result.stderr.count("\n")) == (2, lines)


def test_own_value_error_is_a_line_and_a_librarys_a_traceback(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop, user_errors():
        modeldir.require_directory(Path("nowhere"))
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("error: nowhere does not exist; ")
    with pytest.raises(json.JSONDecodeError), user_errors():
        json.loads("{")


def test_report_of_no_run(run: Path) -> None:
    result = CliRunner().invoke(cli.app, ["report", "nowhere"])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: RUN_DIR: nowhere is no directory; ")


def test_launches_only_when_nobody_did(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two = load_config("run.yaml", ["parallel.tensor=2"])
    assert must_launch(two.world_size)
    assert not must_launch(load_config("run.yaml").world_size)
    monkeypatch.setenv("RANK", "0")
    assert not must_launch(two.world_size)
