"""Which device the tests see. Loaded before any test imports torch.

Without ``-m gpu`` the GPUs are hidden, here and from every process that a test starts: the tests
of several ranks want gloo and more ranks than a machine has GPUs. With it they are seen, and only
tests/gpu runs.
"""

from __future__ import annotations

import os

import pytest
from _pytest.mark.expression import Expression

from scope_megatron.machine import DEVICE_VARIABLE
from scope_megatron.machine.builds import vllm_is_for_cpu, vllm_version

# Tests that start vLLM, by the beginning of their names.
ENGINE = ("tests/e2e/", "tests/faults/", "tests/slurm/test_jobs.py::test_quickstart")


def wants_gpu(expression: str) -> bool:
    """Whether a ``-m`` expression selects tests by their mark ``gpu``."""
    if not expression:
        return False
    compiled = Expression.compile(expression)
    with_it = compiled.evaluate(lambda name, **_: name == "gpu")
    return with_it and not compiled.evaluate(lambda name, **_: False)


def pytest_configure(config: pytest.Config) -> None:
    if wants_gpu(config.getoption("markexpr", "")):
        os.environ.pop(DEVICE_VARIABLE, None)
    else:
        os.environ[DEVICE_VARIABLE] = "cpu"
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """vLLM's builds for GPUs take a GPU or fail, whatever CUDA_VISIBLE_DEVICES says."""
    if os.environ.get(DEVICE_VARIABLE) != "cpu" or vllm_is_for_cpu():
        return
    reason = f"vLLM {vllm_version() or '(missing)'} is no CPU build; see docs/gpu.md"
    for item in items:
        if item.nodeid.startswith(ENGINE):
            item.add_marker(pytest.mark.skip(reason=reason))
