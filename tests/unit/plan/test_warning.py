"""check and launch warn of a run that will not fit, and of no other."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from launch.cluster import Cluster
from launch.plan import LaunchRequest, PlannedJob, plan, warnings
from scope_megatron import cli
from scope_megatron.config import ConfigError, load_config, validating_for
from scope_megatron.instruments.plan.facts.figures import find_gpu
from scope_megatron.instruments.plan.warning import memory_warning
from tests.support.config_run import edit_json, make_run

LARGE = {"hidden_size": 8192, "intermediate_size": 29568, "num_hidden_layers": 80}
LARGE |= {"num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 152064}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return make_run(tmp_path, monkeypatch)


def enlarge() -> None:
    """The student; and the teacher knows as many tokens."""
    edit_json("student/config.json", **LARGE)
    edit_json("teacher/config.json", vocab_size=LARGE["vocab_size"])


def check(*arguments: str) -> str:
    settings = ["run.yaml", "objective.teacher_temperature=as_rollout"]
    result = CliRunner().invoke(cli.app, ["check", *settings, "--gpus-per-node", "4", *arguments])
    assert result.exit_code == 0, result.output
    return result.stderr


def test_check_warns_of_what_will_not_fit_on_that_gpu(folder: Path) -> None:
    assert check("--gpu", "h100") == ""
    enlarge()
    assert check() == "", "nobody said which GPU"
    (line,) = check("--gpu", "h100").splitlines()
    assert line.startswith("warning: the run will probably not fit: ")
    assert "of 79.1 (H100 SXM 80 GB)" in line and "; try " in line


def test_check_refuses_a_gpu_that_it_does_not_know(folder: Path) -> None:
    arguments = ["check", "run.yaml", "--gpus-per-node", "4", "--gpu", "voodoo2"]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 2 and result.stderr.startswith("error: --gpu: 'voodoo2'")


def test_a_run_on_a_cpu_is_not_warned_of(folder: Path) -> None:
    enlarge()
    with validating_for(0):
        config = load_config("run.yaml", check_files=False)
    assert memory_warning(config, find_gpu("h100")) is None


def test_launch_warns_of_each_run(folder: Path) -> None:
    enlarge()
    cluster = Cluster(kind="slurm", gpus_per_node=4)
    request = LaunchRequest(
        config="run.yaml", cluster=cluster, gpu="l40s", sweep=["parallel.tensor=1,2"]
    )
    jobs: list[PlannedJob] = plan(request)
    told = warnings(request, jobs)
    assert [line.partition(":")[0] for line in told] == [job.name for job in jobs]
    assert warnings(LaunchRequest(config="run.yaml", cluster=cluster), jobs) == []
    with pytest.raises(ConfigError, match="--gpu"):
        warnings(LaunchRequest(config="run.yaml", cluster=cluster, gpu="none"), jobs)
