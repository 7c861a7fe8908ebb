"""The loss kernels on a GPU: every case of the interpreter's, and a real vocabulary."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from scope_megatron.objective.head import kernels
from tests.support.heads import vocab_parallel_logprob_and_divergence

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
COLUMNS, VOCAB, T = 152064, 151936, 64  # Qwen2.5's padded width and its tokenizer's


def test_every_case_on_the_device() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "tests/unit/kernel_cases.py"],
        cwd=ROOT,
        env={key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]


def logits(seed: int) -> Tensor:
    generator = torch.Generator("cuda").manual_seed(seed)
    return 4 * torch.randn(T, COLUMNS, generator=generator, device="cuda").bfloat16()


@pytest.mark.parametrize("kind", ["reverse_kl", "forward_kl", "jsd"])
def test_a_large_vocabulary_in_bfloat16(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    targets = torch.randint(VOCAB, (T,), device="cuda")
    upstream = torch.linspace(-1, 1, 2 * T, device="cuda").view(2, T).unbind()
    ran = []
    run = kernels._run
    monkeypatch.setattr(kernels, "_run", lambda *args, **kwargs: ran.append(run(*args, **kwargs)))
    results = {}
    for kernel in ("auto", "torch"):
        leaf = logits(0).requires_grad_()
        pair = vocab_parallel_logprob_and_divergence(
            leaf, targets, logits(1), kind=kind, vocab_size=VOCAB, temperature=0.7, kernel=kernel
        )
        results[kernel] = (torch.stack(pair), torch.autograd.grad(pair, leaf, upstream)[0])
    assert len(ran) == (3 if kind == "jsd" else 2)
    (value, grad), (want, slope) = results["auto"], results["torch"]
    torch.testing.assert_close(value, want, rtol=1e-5, atol=1e-5)
    # one unit in the last place: the two may round to different sides
    torch.testing.assert_close(grad, slope, rtol=2**-7, atol=1e-8)
    log_p = torch.log_softmax(logits(0)[:, :VOCAB].double() / 0.7, -1)
    exact = log_p.gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(value[0].double(), exact, rtol=1e-5, atol=1e-5)
    assert not grad[:, VOCAB:].any()
