"""Launching: what is refused, the generated Slurm scripts, and a real launch on this machine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from launch.cluster import Cluster
from launch.plan import LaunchRequest, plan
from launch.run import main

GOLDEN = Path(__file__).parents[1] / "golden"
ROOT = Path(__file__).parents[2]


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    """A valid two-rank configuration with the smallest model directory that passes its checks."""
    model = tmp_path / "model"
    model.mkdir()
    shape = {
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "vocab_size": 4,
        "max_position_embeddings": 64,
        "tie_word_embeddings": True,
    }
    (model / "config.json").write_text(json.dumps(shape))
    (model / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0, "b": 1}}}))
    embedding = np.zeros((4, 64), np.float32)
    save_file({"model.embed_tokens.weight": embedding}, model / "model.safetensors")
    data = tmp_path / "train.jsonl"
    data.write_text('{"prompt": "a", "response": "b"}\n')
    settings = {
        "output_dir": str(tmp_path / "out"),
        "algorithm": {"name": "kd"},
        "model": {"student": str(model)},
        "parallel": {"data": 2},
        "data": {"train": str(data), "max_prompt_tokens": 8},
        "optimizer": {"lr": 1e-3},
        "train": {"steps": 1, "microbatch_tokens": 32, "batch_sequences": 2},
        "evaluation": {"before": False, "after": False},
    }
    path = tmp_path / "tiny run.yaml"  # the blank has to survive every shell on the way
    path.write_text(yaml.safe_dump(settings))
    return path


def launch(
    tmp_path: Path, *arguments: str, module: str = "launch.run"
) -> subprocess.CompletedProcess[str]:
    """python -m launch.run with an experiments' folder of its own (it is read at import)."""
    env = os.environ | {"NEMORUN_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=150,  # about 5 s on an idle machine
    )


in_git = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="--package needs a git checkout")
SLURM = ("--executor", "slurm", "--dryrun", "--nodes", "2", "--time", "04:00:00")
CASES = {
    "launch_slurm": (
        *("--account", "team_a", "--partition", "gpu", "--gpus-per-node", "1", "--grace", "300"),
        *("--env", "NCCL_NOTE=$(hostname) it's", "optimizer.lr=1e-4", "seed=7"),
    ),
    "launch_pyxis": (
        *("--container", "nvcr.io#nvidia/pytorch:25.06-py3", "--mount", "/data:/data"),
        *("--cpus-per-task", "12", "--package", "--allow-dirty"),
    ),
    "launch_sweep": (
        *("--sweep", "seed=1,2", "--then", "evaluate"),
        *("data.eval={tmp}/train.jsonl", "evaluation.max_response_tokens=8"),
    ),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=in_git if "--package" in CASES[name] else ()) for name in CASES],
)
def test_slurm_dryrun_is_the_golden_file(name: str, tmp_path: Path, config_file: Path) -> None:
    """Regenerate after a wanted change: GOLDEN_UPDATE=1 pytest tests/unit/test_launch.py"""
    arguments = [word.format(tmp=tmp_path) for word in CASES[name]]
    done = launch(tmp_path, str(config_file), *SLURM, *arguments)
    assert done.returncode == 0, done.stderr
    text = done.stdout.replace(sys.executable, "/PYTHON")
    text = text.replace(str(tmp_path), "/TMP").replace(str(ROOT), "/PROJECT")
    text = re.sub(r"scope-megatron_\d+", "scope-megatron_ID", text)
    golden = GOLDEN / f"{name}.sbatch"
    if os.environ.get("GOLDEN_UPDATE"):
        golden.write_text(text)
    assert text == golden.read_text()
    subprocess.run(["bash", "-n"], input=text, text=True, check=True, timeout=10)
    assert not list((tmp_path / "home").glob("experiments/*/*")), "a dry run leaves nothing"


def test_golden_script_keeps_values_whole() -> None:
    text = (GOLDEN / "launch_slurm.sbatch").read_text()
    export = next(line for line in text.splitlines() if line.startswith("export NCCL_NOTE"))
    shown = subprocess.run(
        ["bash", "-c", export + '; printf %s "$NCCL_NOTE"'],
        capture_output=True,
        text=True,
        check=True,
        timeout=10,
    )
    assert shown.stdout == "$(hostname) it's"


def test_local_launch_really_runs(tmp_path: Path, config_file: Path) -> None:
    done = launch(tmp_path, str(config_file), "--check", "seed=4321")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "seed: 4321" in done.stdout, "the run's own output is shown"
    assert "SUCCEEDED" in done.stdout


@pytest.mark.slow
@in_git
def test_sweep_with_packaged_code_runs_here(tmp_path: Path, config_file: Path) -> None:
    """One run after the other, each from HEAD's copy, with its own settings and directory."""
    arguments = ("--check", "--package", "--allow-dirty", "--sweep", "seed=31,32")
    done = launch(tmp_path, str(config_file), *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    folders = sorted((tmp_path / "home").glob("experiments/*/*/tiny-run.seed-*"))
    assert [folder.name for folder in folders] == ["tiny-run.seed-31", "tiny-run.seed-32"]
    for folder, seed in zip(folders, (31, 32), strict=True):
        ran_with = (folder / "config.yaml").read_text()
        assert f"seed: {seed}" in ran_with and f"out/seed-{seed}" in ran_with
        assert (folder / "code" / "scope_megatron" / "cli.py").exists()
        script = next(folder.glob("scripts/*.sh")).read_text()
        where = script.replace(
            "-m scope_megatron check", "-c 'import scope_megatron as s; print(s)'"
        )
        shown = subprocess.run(["bash", "-c", where], capture_output=True, text=True, timeout=60)
        assert str(folder / "code" / "scope_megatron") in shown.stdout, "not the working tree's"


@pytest.mark.slow
def test_nemo_run_s_own_command_line(tmp_path: Path, config_file: Path) -> None:
    arguments = (f"config={config_file}", "cluster=slurm", "cluster.nodes=2", "--dryrun")
    done = launch(tmp_path, *arguments, module="launch.nemo")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "#SBATCH --nodes=2" in done.stdout and "-m scope_megatron train" in done.stdout
    done = launch(tmp_path, arguments[0], "cluster=slurm", "cluster.nods=2", module="launch.nemo")
    assert done.returncode == 1 and "nods" in done.stderr


def test_local_failure_is_the_launcher_s_failure(tmp_path: Path, config_file: Path) -> None:
    """The variable reaches the run, whose Python then finds no standard library."""
    done = launch(tmp_path, str(config_file), "--check", "--env", "PYTHONHOME=/nowhere")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FAILED" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--executor", "slrum"], "did you mean slurm"),
        (["--container", "image"], "--container"),
        (["--site", "nowhere"], "--site"),
        (["--executor", "slurm", "--nodes", "2", "--grace", "7200"], "--grace"),
        (["--executor", "slurm", "--nodes", "2", "--time", "soon"], "--time"),
        (["--sweep", "seed=1,,2"], "--sweep"),
        (["--sweep", "seed=1,2", "--sweep", "seed=3"], "--sweep"),
        (["--sweep", "sede=1,2"], "sede"),
        (["--then", "evaluate"], "data.eval"),
        (["--nodes", "2"], "--nodes"),
        (["--gpus-per-node", "3"], "--gpus-per-node 3"),
        (["--env", "HF_TOKEN=abc", "--executor", "slurm", "--nodes", "2"], "HF_TOKEN"),
        (["--env", "lower=1", "--executor", "slurm", "--nodes", "2"], "upper case"),
        (["optimiser.lr=1"], "optimiser"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(
    arguments: list[str],
    message: str,
    config_file: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    assert main([str(config_file), "--dryrun", *arguments]) == 2
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1 and message in lines[0]
    assert "abc" not in captured.err, "an error does not repeat a secret"
    assert captured.out == ""


@pytest.mark.parametrize(
    ("gpus", "nodes", "device", "layout"),
    [(8, 1, "cuda", (2, 4)), (8, 2, "cuda", (2, 8)), (1, 1, "cuda", (1, 1)), (0, 2, "cpu", (2, 1))],
)
def test_auto_sizes_are_those_of_the_nodes_asked_for(
    monkeypatch: pytest.MonkeyPatch, gpus: int, nodes: int, device: str, layout: tuple[int, int]
) -> None:
    """In the configuration that the job gets, and in that of the evaluation after it."""
    monkeypatch.chdir(ROOT)
    cluster = Cluster(gpus_per_node=gpus, nodes=nodes)
    request = LaunchRequest(config="configs/quickstart.yaml", cluster=cluster, then="evaluate")
    request.overrides.append("output_dir=/tmp/never-written")
    for job in plan(request):
        assert job.config.platform.device == device
        assert (job.config.parallel.tensor, job.config.parallel.data) == layout
        assert cluster.ranks_per_node(job.config.world_size) == layout[0] * layout[1] // nodes
