"""Device, layout and refusals on pretended machines."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from scope_megatron.config import ConfigError, load_config, validating_for
from scope_megatron.config.layout import resolve_auto
from scope_megatron.machine import DETERMINISTIC, Gpu, Machine, choose, settle
from scope_megatron.machine.gpus import chosen_by
from tests.support.config_run import edit_json, make_run
from tests.unit.pretended import H100, pretend

ROOT = Path(__file__).parents[2]
QUICKSTART = str(ROOT / "configs/quickstart.yaml")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return make_run(tmp_path, monkeypatch)


@pytest.fixture
def project(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the project's directory, started by nobody."""
    monkeypatch.chdir(ROOT)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def check(env: dict[str, str], *overrides: str) -> tuple[int, dict, str]:
    """(exit code, the resolved settings, stderr) of `scope-megatron check` on the quickstart."""
    command = [sys.executable, "-m", "scope_megatron", "check", "configs/quickstart.yaml"]
    done = subprocess.run(
        [*command, *overrides], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60
    )
    return done.returncode, yaml.safe_load(done.stdout) or {}, done.stderr


@pytest.mark.parametrize(
    ("gpus", "nodes", "device", "tensor", "data"),
    [
        (0, 1, "cpu", 2, 1),
        (1, 1, "cuda", 1, 1),
        (2, 1, "cuda", 2, 1),
        (3, 1, "cuda", 2, 1),
        (8, 1, "cuda", 2, 4),
        (8, 2, "cuda", 2, 8),
        (1, 4, "cuda", 1, 4),
    ],
)
@pytest.mark.usefixtures("project")
def test_the_quickstart_follows_the_gpus(
    tmp_path: Path, gpus: int, nodes: int, device: str, tensor: int, data: int
) -> None:
    with validating_for(gpus, nodes):
        config = load_config(QUICKSTART, [f"output_dir={tmp_path}/run"])
    assert config.platform.device == device
    assert (config.parallel.tensor, config.parallel.data) == (tensor, data)


@pytest.mark.parametrize(
    ("machine", "device", "ranks", "line"),
    [
        ({"gpus": 0}, "cpu", 2, "device: CPU; no NVIDIA GPU is here"),
        (
            {"gpus": 1},
            "cuda",
            1,
            f"device: CUDA; 1 x {H100}; driver for CUDA 13.0, torch 2.13.0 for 13.0, vLLM 0.32.0",
        ),
        (
            {"gpus": 2, "driver": 13010, "torch": "13.3"},  # within a major version: any minor one
            "cuda",
            2,
            f"device: CUDA; 2 x {H100}; driver for CUDA 13.1, torch 2.13.0 for 13.3, vLLM 0.32.0",
        ),
        (
            {"gpus": 8, "driver": 12020, "vllm": "0.32.0+cpu"},
            "cpu",
            2,
            f"device: CPU; 8 x {H100}: driver 580.65 speaks CUDA 12.2, torch is built for 13.0; to "
            "use it, install driver 580 or newer",
        ),
        (
            {"gpus": 1, "torch": None, "vllm": "0.32.0+cpu"},
            "cpu",
            2,
            f"device: CPU; 1 x {H100}: torch 2.13.0+cpu is no CUDA build; to use it, remove the "
            "environment and run `make env` on this machine",
        ),
        (
            {"gpus": 1, "torch": None, "vllm": "0.32.0+cpu", "driver": 12020},
            "cpu",
            2,
            f"device: CPU; 1 x {H100}: torch 2.13.0+cpu is no CUDA build; to use it, install "
            "driver 580 or newer, then remove the environment and run `make env` on this machine",
        ),
        (
            {"gpus": 1, "vllm": "0.32.0+cpu"},
            "cpu",
            2,
            f"device: CPU; 1 x {H100}: vLLM 0.32.0+cpu is a CPU build; to use it, remove the "
            "environment and run `make env` on this machine",
        ),
    ],
    ids=["none", "one", "two", "old driver", "torch for CPUs", "both", "vLLM for CPUs"],
)
def test_auto_takes_cuda_when_all_agree_and_says_why(
    tmp_path: Path, machine: dict, device: str, ranks: int, line: str
) -> None:
    env = pretend(tmp_path, **{"vllm": "0.32.0+cpu" if not machine["gpus"] else "0.32.0"} | machine)
    code, settings, err = check(env, f"output_dir={tmp_path}/run")
    assert (code, err) == (0, line + "\n")
    assert settings["platform"]["device"] == device
    assert settings["parallel"]["tensor"] * settings["parallel"]["data"] == ranks


@pytest.mark.parametrize(
    ("machine", "environment", "overrides", "line"),
    [
        (
            {"gpus": 1},
            {},
            ["parallel.tensor=2", "parallel.data=4"],
            "parallel: tensor 2 x pipeline 1 x data 4 makes 8 ranks per node but 1 GPU is visible; "
            "set parallel.data=1 and parallel.tensor=1, or platform.device=cpu",
        ),
        (
            {"gpus": 4},
            {"CUDA_VISIBLE_DEVICES": "2,GPU-0a,7"},  # CUDA ends at the first wrong one
            ["parallel.tensor=1", "parallel.data=4"],
            "parallel: tensor 1 x pipeline 1 x data 4 makes 4 ranks per node but 2 GPUs are "
            "visible; set parallel.data=2, or platform.device=cpu",
        ),
        (
            {"gpus": 1},
            {"SLURM_JOB_ID": "7", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": "0"},
            [],
            "parallel: 2 ranks per node but 1 GPU is visible; ask Slurm for --gpus-per-node, not "
            "--gpus-per-task or --gpu-bind: each rank must see all GPUs of its node",
        ),
        (
            {"gpus": 1, "free_mib": 12000},
            {},
            [],
            "rollout.engine.gpu_memory_utilization: is 0.2 of 79.6 GiB but GPU 0 (NVIDIA H100 80GB "
            "HBM3) has 11.7 GiB free; end what uses it, choose others with CUDA_VISIBLE_DEVICES, "
            "or set it to 0.09 or less",
        ),
        (
            {"gpus": 1, "driver": 12020},
            {},
            ["platform.device=cuda"],
            "platform.device: is cuda but 1 x NVIDIA H100 80GB HBM3: driver 580.65 speaks CUDA "
            "12.2, torch is built for 13.0; install driver 580 or newer",
        ),
        (
            {"gpus": 1, "driver": None},
            {"SCOPE_DEVICE": "cuda"},
            [],
            "platform.device: is cuda by SCOPE_DEVICE but 1 x NVIDIA H100 80GB HBM3: the driver's "
            "libcuda.so.1 does not answer; install NVIDIA's driver",
        ),
        (
            {"gpus": 1, "vllm": "0.32.0+cpu"},
            {},
            ["platform.device=cuda"],
            "platform.device: is cuda but vLLM 0.32.0+cpu is a CPU build; remove the environment "
            "and run `make env` on this machine, or set it to auto or cpu",
        ),
        (
            {"gpus": 1, "driver": 12020},
            {},
            [],
            "platform.device: makes it the CPU (1 x NVIDIA H100 80GB HBM3: driver 580.65 speaks "
            "CUDA 12.2, torch is built for 13.0; to use it, install driver 580 or newer) but vLLM "
            "0.32.0 is built for GPUs; make an environment for the CPU: `DEVICE=cpu make env "
            "VENV=.venv-cpu`",
        ),
        (
            {"gpus": 1},
            {"SCOPE_DEVICE": "gpu"},
            [],
            "platform.device: is auto and SCOPE_DEVICE is 'gpu'; set that to auto, cpu, cuda",
        ),
    ],
    ids=lambda value: "" if isinstance(value, list | str) else None,
)
def test_what_is_refused(
    tmp_path: Path, machine: dict, environment: dict, overrides: list[str], line: str
) -> None:
    env = pretend(tmp_path, **machine) | environment
    code, _, err = check(env, f"output_dir={tmp_path}/run", *overrides)
    assert (code, err) == (2, f"error: {line}\n")


def test_a_driver_that_is_missing_leaves_the_cpu(tmp_path: Path) -> None:
    env = pretend(tmp_path, gpus=1, driver=None, vllm="0.32.0+cpu")
    code, settings, err = check(env, f"output_dir={tmp_path}/run")
    assert code == 0 and settings["platform"]["device"] == "cpu"
    assert "libcuda.so.1 does not answer; to use it, install NVIDIA's driver" in err


def test_check_for_another_machine(tmp_path: Path) -> None:
    """`check --gpus-per-node`: as for those machines, whatever is here."""
    env = pretend(tmp_path, gpus=0, vllm="0.32.0+cpu")
    output = f"output_dir={tmp_path}/run"
    for options, device, data in (
        (["--gpus-per-node", "8"], "cuda", 4),
        (["--gpus-per-node", "8", "--nodes", "2"], "cuda", 8),
        (["--gpus-per-node", "0"], "cpu", 1),
    ):
        code, settings, err = check(env, output, *options)
        assert (code, err) == (0, "")
        assert (settings["platform"]["device"], settings["parallel"]["data"]) == (device, data)
    code, _, err = check(env, output, "--gpus-per-node", "2", "--nodes", "2", "parallel.data=8")
    assert code == 2
    assert err == (
        "error: parallel: tensor 1 x pipeline 1 x data 8 makes 4 ranks per node but 2 GPUs are "
        "visible; set parallel.data=4, or give more with --nodes or --gpus-per-node\n"
    )
    code, _, err = check(env, output, "--gpus-per-node", "0", "platform.device=cuda")
    assert code == 2 and "is cuda but the machine has no GPUs (--gpus-per-node 0)" in err
    assert check(env, output, "--nodes", "2")[0] == 2


@pytest.mark.usefixtures("project")
def test_auto_fills_the_ranks_that_were_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCOPE_DEVICE", "cpu")
    for world, local, layout in (("2", "2", (2, 1)), ("4", "2", (2, 2)), ("4", "1", (2, 2))):
        monkeypatch.setenv("WORLD_SIZE", world)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
        parallel = load_config(QUICKSTART, [f"output_dir={tmp_path}/run"]).parallel
        assert (parallel.tensor, parallel.data) == layout
    values = yaml.safe_load(Path(QUICKSTART).read_text())
    found = resolve_auto(values, Machine("cuda", gpus=1))["parallel"]
    assert found == {"tensor": 1, "data": 4}, "a tensor group stays within a node"
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name)
    parallel = load_config(QUICKSTART, [f"output_dir={tmp_path}/run", "parallel.tensor=1"]).parallel
    assert (parallel.tensor, parallel.data) == (1, 1), "a smaller quickstart on a small machine"


def test_auto_suits_models_and_the_other_settings(run: Path) -> None:
    def layout(gpus: int, *overrides: str) -> tuple[int, int]:
        with validating_for(gpus):
            parallel = load_config("run.yaml", ["parallel.tensor=auto", *overrides]).parallel
        return parallel.tensor, parallel.data

    assert layout(8) == (2, 1)  # two key-value heads
    assert layout(8, "parallel.data=auto") == (2, 4)  # 4 prompts
    assert layout(8, "parallel.data=auto", "train.updates_per_batch=2") == (2, 2)
    assert layout(8, "parallel.data=auto", "parallel.pipeline=4") == (2, 1)
    assert layout(2, "parallel.pipeline=2") == (1, 1)
    assert layout(8, "parallel.sequence=true") == (2, 1)
    edit_json("teacher/config.json", num_attention_heads=3, num_key_value_heads=3, head_dim=32)
    assert layout(8) == (1, 1)
    mixture = {"num_experts": 4, "moe_intermediate_size": 64}
    edit_json("student/config.json", architectures=["Qwen3MoeForCausalLM"], **mixture)
    grpo = ("algorithm.name=grpo", "parallel.data=auto")
    assert layout(8, *grpo) == (1, 4)
    assert layout(8, *grpo, "parallel.sequence=true") == (2, 4)


def test_refusal_comes_before_a_missing_model_is_read(run: Path) -> None:
    with pytest.raises(ConfigError, match="^model.student: nowhere"), validating_for(2):
        load_config("run.yaml", ["parallel.tensor=auto", "model.student=nowhere"])


def test_cuda_visible_devices_as_cuda_reads_it() -> None:
    gpus = tuple(Gpu(f"card {i}", uuid=f"GPU-{i}") for i in range(3))
    names = {
        None: [0, 1, 2],
        "": [],
        "-1": [],
        "1": [1],
        "2, 0": [2, 0],
        "GPU-1,0": [1, 0],
        "0,9,1": [0],
        "GPU-": [],  # more than one begins like this
    }
    for wanted, expected in names.items():
        assert chosen_by(wanted, gpus) == tuple(gpus[i] for i in expected), wanted
    assert len(chosen_by("MIG-1,MIG-2", gpus)) == 2
    assert chosen_by("MIG-1", ()) == ()


def test_the_process_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("SCOPE_DEVICE", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_MAX_CONNECTIONS", *DETERMINISTIC)
    for name in names:
        monkeypatch.setenv(name, "to be put back")
        monkeypatch.delenv(name)
    import os

    settle("cuda", tensor=1)
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
    assert "CUDA_DEVICE_MAX_CONNECTIONS" not in os.environ
    settle("cuda", tensor=2)
    assert os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] == "1"
    assert not os.environ.keys() & DETERMINISTIC.keys()
    settle("cuda", tensor=1, deterministic=True)
    assert os.environ.items() >= DETERMINISTIC.items()
    settle("cpu", tensor=2)
    assert (os.environ["CUDA_VISIBLE_DEVICES"], os.environ["SCOPE_DEVICE"]) == ("", "cpu")
    assert choose("auto").line() == "device: CPU; SCOPE_DEVICE is cpu"


def test_an_evaluation_follows_the_same_choice(tmp_path: Path) -> None:
    """Up to where it would import torch, which ends a process on a pretended machine."""
    data = ROOT / "assets/arithmetic/eval.jsonl"
    model = ("--model", "assets/tiny-student", "--data", str(data), "--out", f"{tmp_path}/out")
    command = [sys.executable, "-m", "scope_megatron", "evaluate", *model]
    for machine, line in (
        (
            {"gpus": 1, "free_mib": 12000},
            f"error: --gpu-memory-utilization: is 0.9 of 79.6 GiB but GPU 0 ({H100}) has 11.7 GiB",
        ),
        ({"gpus": 0}, "error: --device: makes it the CPU (no NVIDIA GPU is here) but vLLM 0.32.0"),
    ):
        env = pretend(tmp_path, **machine)
        done = subprocess.run(
            command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert done.stderr.startswith(line)
