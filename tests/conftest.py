"""Which device, caches and hub the tests see. Loaded before any test imports torch.

Without ``-m gpu`` the GPUs are hidden, here and from every process that a test starts: the tests
of several ranks want gloo and more ranks than a machine has GPUs. With it they are seen, and only
tests/gpu runs. What is tokenised goes to a directory of the session, and no test asks a hub that it
did not start.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from _pytest.mark.expression import Expression

from scope_megatron.machine import DEVICE_VARIABLE
from scope_megatron.machine.builds import vllm_is_for_cpu, vllm_version
from tests.support import left_out

# Tests that start vLLM, by the beginning of their names.
ENGINE = ("tests/e2e/", "tests/faults/", "tests/slurm/test_jobs.py::test_quickstart")
# Of instruments (planner, page, reports, proofs, studies), benchmarks and the documentation.
INSTRUMENTS = (
    "tests/distributed/test_alternatives.py",
    "tests/distributed/test_plan_memory.py",
    "tests/e2e/test_bench_ready.py",
    "tests/e2e/test_doc_commands.py",
    "tests/e2e/test_gpu_proof.py",
    "tests/e2e/test_trace.py",
    "tests/e2e/test_view.py",
    "tests/unit/plan/",
    "tests/unit/test_arithmetic.py",
    "tests/unit/test_bench_",
    "tests/unit/test_contracts.py",
    "tests/unit/test_doc_commands.py",
    "tests/unit/test_doctor.py",
    "tests/unit/test_fit.py",
    "tests/unit/test_gpu_proof.py",
    "tests/unit/test_gpu_tests.py",
    "tests/unit/test_health.py",
    "tests/unit/test_recovery.py",
    "tests/unit/test_report.py",
    "tests/unit/test_site.py",
    "tests/unit/test_smollm2.py",
    "tests/unit/test_tasks.py",
    "tests/unit/test_view.py",
    "tests/unit/test_webpage.py",
)
NO_ENGINE = pytest.StashKey[str]()
FOLDER = pytest.StashKey[str]()


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
        return
    os.environ[DEVICE_VARIABLE] = "cpu"
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if not vllm_is_for_cpu():
        config.stash[NO_ENGINE] = f"vLLM {vllm_version() or '(missing)'} is no CPU build"
        _let_settings_pass(Path(config.stash.setdefault(FOLDER, tempfile.mkdtemp())))


def pytest_unconfigure(config: pytest.Config) -> None:
    if folder := config.stash.get(FOLDER, None):
        shutil.rmtree(folder)


def _let_settings_pass(folder: Path) -> None:
    """A run on the CPU with a vLLM for GPUs is refused. The tests of settings are not about that:
    they, and the processes that they start, find the metadata of a CPU build."""
    info = folder / "vllm-0+cpu.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0+cpu\n")
    sys.path.insert(0, str(folder))
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = f"{folder}{os.pathsep}{before}" if before else str(folder)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Studies are left out unless ``-m`` names them, instruments too unless the command line names
    their file; vLLM's builds for GPUs take a GPU or fail, whatever CUDA_VISIBLE_DEVICES says."""
    for item in items:
        if item.nodeid.startswith(INSTRUMENTS):
            item.add_marker("instrument")
    expression = config.getoption("markexpr", "")
    named = {Path(argument.partition("::")[0]).resolve() for argument in config.args}
    left_out = [
        item
        for item in items
        if ("study" not in expression and item.get_closest_marker("study"))
        or (
            not {"study", "instrument"} & set(expression.split())
            and item.get_closest_marker("instrument")
            and item.path not in named
        )
    ]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]
    if reason := config.stash.get(NO_ENGINE, ""):
        for item in items:
            if item.nodeid.startswith(ENGINE):
                item.add_marker(pytest.mark.skip(reason=f"{reason}; see docs/gpu.md"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not hasattr(terminalreporter.config, "workerinput"):  # xdist's workers report to this one
        left_out.note(terminalreporter.stats.get("skipped", []))


@pytest.fixture(scope="session", autouse=True)
def own_caches() -> Iterator[None]:
    """Subprocesses inherit them."""
    with tempfile.TemporaryDirectory(prefix="scope-megatron-tests-") as directory:
        own = {"SCOPE_MEGATRON_CACHE": directory, "HF_HUB_OFFLINE": "1"}
        before = {name: os.environ.get(name) for name in own}
        os.environ.update(own)
        yield
        for name, value in before.items():
            os.environ.pop(name)
            os.environ |= {name: value} if value is not None else {}
