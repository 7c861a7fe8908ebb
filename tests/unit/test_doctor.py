"""The doctor finds what is wrong: each fault is a real one, put before it."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from scope_megatron.instruments.doctor import cluster, machine, packages
from scope_megatron.instruments.doctor.finding import Finding, Level, output_of

ROOT = Path(__file__).parents[2]


def doctor(*arguments: str, before: Callable[[], None] | None = None) -> tuple[int, str]:
    """Of this machine as it is, its GPUs not hidden."""
    command = [sys.executable, "-m", "scope_megatron", "doctor", *arguments]
    hidden = ("SCOPE_DEVICE", "CUDA_VISIBLE_DEVICES")
    env = {name: value for name, value in os.environ.items() if name not in hidden}
    done = subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=200, preexec_fn=before
    )
    return done.returncode, done.stdout


def program(directory: Path, name: str, script: str) -> None:
    path = directory / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def named(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


@pytest.mark.slow
def test_this_machine_is_ready_but_for_a_low_limit() -> None:
    def few_files() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, 512))

    code, out = doctor("--json", before=few_files)
    found = {item["name"]: item for item in json.loads(out)}
    assert code == 0, [item for item in found.values() if item["level"] == "error"]
    for name in ("torch", "megatron-core", "vLLM", "versions", "collectives"):
        assert found[name]["level"] == "ok", found[name]
    assert "over" in found["collectives"]["detail"]
    assert found["open files"]["level"] == "warning"
    assert "ulimit -n 4096" in found["open files"]["fix"]


def test_a_package_that_breaks_on_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_needed.py").write_text("raise OSError('libcudart.so.12: cannot open')")
    (tmp_path / "broken_crash.py").write_text("import os\nos.kill(os.getpid(), 11)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    package = packages.Package("x", "broken_needed")
    finding = packages._imports(package)
    assert finding.level is Level.ERROR
    assert finding.detail == "does not import: OSError: libcudart.so.12: cannot open"
    optional = packages.Package("x", "broken_crash", missing=Level.NOTE)
    assert packages._imports(optional).level is Level.WARNING
    assert "exit code -11" in packages._imports(optional).detail
    assert packages._imports(packages.Package("x", "not_there")).detail == "not installed"


def test_versions_that_do_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "vllm-0.99.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: vllm\nVersion: 0.99\n"
        "Requires-Dist: torch==1.0\nRequires-Dist: numpy>=1\n"
        'Requires-Dist: torch==3.0; extra == "other"\n'
    )
    assert list(packages.misfits("vllm")) == []
    monkeypatch.syspath_prepend(str(tmp_path))
    (line,) = packages.misfits("vllm")
    assert line.startswith("vllm 0.99 needs torch==1.0 but 2")


def test_gpu_that_torch_was_not_built_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    if torch.version.cuda is not None:
        pytest.skip("this torch is a CUDA build")
    program(tmp_path, "nvidia-smi", "echo 'NVIDIA H200, GPU-1, 143771, 20000, 570.1'")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name in ("SCOPE_DEVICE", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    gpu, device = machine._gpus()
    assert gpu.level is Level.WARNING, "too full for an engine"
    assert gpu.detail == "NVIDIA H200, 19.5 of 140.4 GiB free, driver 570.1"
    assert device.level is Level.WARNING
    assert device.detail.startswith("CPU, with gloo; 1 x NVIDIA H200: torch 2")
    assert device.fix == "remove the environment and run `make env` on this machine"
    monkeypatch.setattr(machine, "vllm_is_for_cpu", lambda: False)
    _, device = machine._gpus()
    assert device.level is Level.ERROR and "is built for GPUs" in device.detail
    monkeypatch.setenv("SCOPE_DEVICE", "cuda")
    _, device = machine._gpus()
    assert device.level is Level.ERROR and "is cuda by SCOPE_DEVICE but 1 x NVID" in device.detail


def test_slurm_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert [f.level for f in cluster.check_cluster()] == [Level.NOTE]
    for name in ("sbatch", "munge"):
        program(tmp_path, name, "echo slurm-wlm 22.05.8")
    program(tmp_path, "sh", "echo STATUS: Success")
    program(tmp_path, "scontrol", "echo 'Slurmctld(primary) at n0 is DOWN'")
    found = named(list(cluster.check_cluster()))
    assert found["controller"].level is Level.WARNING
    assert "partitions" not in found
    program(tmp_path, "scontrol", "echo 'Slurmctld(primary) at n0 is UP'")
    program(tmp_path, "sinfo", "printf 'debug* 2 idle\\ndebug* 1 down\\n'")
    program(tmp_path, "sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    program(tmp_path, "srun", "echo '--container-image=[USER@]'")
    found = named(list(cluster.check_cluster()))
    assert found["partitions"].detail == "debug* idle 2, debug* down 1"
    assert found["accounting"].level is Level.NOTE
    assert found["accounting"].detail.startswith("Slurm accounting storage is disabled")
    assert found["pyxis"].level is Level.OK


def test_a_program_that_hangs_is_a_finding(tmp_path: Path) -> None:
    program(tmp_path, "slow", "sleep 30")
    status, _, why = output_of([str(tmp_path / "slow")], timeout_s=0.2)
    assert (status, why) == (None, "no answer within 0 s")
