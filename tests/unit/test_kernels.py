"""The loss kernels where there is no GPU: interpreted, compiled, and chosen by the setting.

What touches Triton runs in a process of its own; kernel_cases.py says why.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from scope_megatron.objective.head import kernels
from scope_megatron.objective.head.spec import Spec
from tests.support.heads import vocab_parallel_logprob

ROOT = Path(__file__).resolve().parents[2]
needs_triton = pytest.mark.skipif(
    find_spec("triton") is None, reason="needs Triton (requirements/dev.txt)"
)


def child(*arguments: str, **environment: str) -> str:
    """Standard output of a Python that must succeed."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("TRITON_")}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=clean | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])} | environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.slow
@needs_triton
def test_interpreted_kernels_agree_with_float64_and_the_torch_path() -> None:
    cases = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/unit/kernel_cases.py")
    quiet = ("-W", "ignore::RuntimeWarning")  # numpy's, of lanes that a mask throws away
    out = child(*cases, *quiet, TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="")
    assert " passed" in out and "failed" not in out


@pytest.mark.slow
@needs_triton
def test_kernels_compile_for_a_gpu(tmp_path: Path) -> None:
    out = child("tests/unit/kernel_compile.py", TRITON_CACHE_DIR=str(tmp_path))
    assert len(out.splitlines()) == 16


def test_triton_is_not_imported_on_a_cpu() -> None:
    code = (
        "import sys, torch\n"
        "from scope_megatron.objective import Shard, vocab_parallel_logprob\n"
        "logits = torch.zeros(2, 8, requires_grad=True)\n"
        "vocab_parallel_logprob(logits, torch.tensor([0, 1]), Shard.of(8, None, None))"
        ".sum().backward()\n"
        "print('triton' in sys.modules)\n"
    )
    assert child("-c", code) == "False\n"


def test_triton_on_cpu_tensors_is_refused() -> None:
    logits, targets = torch.zeros(2, 8), torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"^objective\.kernel: is triton but the logits are on c"):
        vocab_parallel_logprob(logits, targets, kernel="triton")
    with pytest.raises(ValueError, match=r"^objective\.kernel must be one of auto, torch, triton"):
        vocab_parallel_logprob(logits, targets, kernel="cuda")


def test_broken_triton_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton/__init__.py").write_text("raise OSError('libcuda.so.1: cannot open')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    kernels._programs.cache_clear()
    try:
        with pytest.warns(UserWarning, match=r"Triton does not import \(libcuda.so.1"):
            assert kernels._programs() is None
    finally:
        kernels._programs.cache_clear()


class OnCuda:
    """What the choice looks at."""

    is_cuda, device = True, "cuda:0"

    def __init__(self, dtype: torch.dtype = torch.bfloat16) -> None:
        self.dtype = dtype


def test_choice_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(kernel: str, kind: str | None = "reverse_kl", dtype=torch.bfloat16) -> bool:
        return kernels.chosen(OnCuda(dtype), None, Spec(divergence=kind, kernel=kernel))

    monkeypatch.setattr(kernels, "_programs", lambda: kernels)
    assert chosen("auto") and chosen("triton") and not chosen("torch")
    for kernel in ("auto", "triton"):
        assert not chosen(kernel, "topk") and not chosen(kernel, dtype=torch.float64)
    monkeypatch.setattr(kernels, "_programs", lambda: None)
    assert not chosen("auto")
    with pytest.raises(ValueError, match=r"^objective\.kernel: is triton but Triton does not imp"):
        chosen("triton")
