"""The loss kernels on two vocabulary shards, interpreted: the head alone, and whole updates."""

from __future__ import annotations

from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from scope_megatron.objective.head import gradient, kernels
from scope_megatron.objective.head import statistics as vocab
from tests.distributed import test_step_layouts as steps
from tests.distributed.test_loss_tp import SHAPES
from tests.support.harness import run_distributed_test
from tests.support.heads import vocab_parallel_logprob_and_divergence, vocab_parallel_scores
from tests.support.tiny_hf import make_tiny_model

pytestmark = pytest.mark.skipif(
    find_spec("triton") is None, reason="needs Triton (requirements/dev.txt)"
)
T = 13
KINDS = ["reverse_kl", "forward_kl", "jsd"]
UPDATES = ["scope", "scope-fused", "scope-reverse-kl"]


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ranks' kernels run on CPU tensors: said before Triton is imported there."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")


def interpret() -> Counter:
    """Count the programs that run in this process."""
    counts, run = Counter(), kernels._run

    def counting(name: str, *args: Any, **constants: Any) -> None:
        counts[name] += 1
        run(name, *args, **constants)

    kernels._run = counting
    return counts


def forbidden(*args: Any) -> None:
    raise AssertionError("a pass over the logits did not get the setting")


def run_case(kind: str, shape: str, kernel: str, rank: int, group) -> list[torch.Tensor]:
    """Values and gradient of this rank's shard of float32 logits."""
    width, vocab, scale = SHAPES[shape]
    generator = torch.Generator().manual_seed(5)
    full, teacher = scale * torch.randn(2, T, width, generator=generator)
    targets = torch.randint(vocab, (T,), generator=generator)
    columns = slice(rank * width // 2, (rank + 1) * width // 2)
    shard = full[:, columns].clone().requires_grad_()
    options: dict[str, Any] = {"vocab_size": vocab, "temperature": 0.6, "kernel": kernel}
    pair = vocab_parallel_logprob_and_divergence(
        shard, targets, teacher[:, columns], group, kind=kind, teacher_temperature=1.3, beta=0.3,
        **options,
    )  # fmt: skip
    upstream = torch.linspace(-1, 1, 2 * T).view(2, T).unbind()
    (grad,) = torch.autograd.grad(pair, shard, upstream)
    scores = vocab_parallel_scores(shard, targets, group, with_entropy=True, **options)
    assert scores.entropy is not None
    return [*(part.detach() for part in pair), grad, *scores]


def every_case(rank: int, size: int) -> dict[Any, Any]:
    counts, group = interpret(), dist.new_group([0, 1])
    out: dict[Any, Any] = {
        (kind, shape, kernel): run_case(kind, shape, kernel, rank, group)
        for kind in KINDS
        for shape in SHAPES
        for kernel in ("triton", "torch")
    }
    return out | {"programs": dict(counts)}


def one_update(rank: int, size: int, root: Path) -> dict[Any, Any]:
    counts = interpret()
    vocab.chunks = gradient.chunks = forbidden  # nothing may take the torch path
    for name in UPDATES:
        steps.OBJECTIVES[name] |= {"objective.kernel": "triton"}
    return steps.one_update(rank, size, root, ["tensor"], UPDATES) | {"programs": dict(counts)}


def test_shards_agree_with_the_torch_path() -> None:
    for ours in run_distributed_test(every_case, 2):
        assert ours["programs"]["gradient_blocks"] == len(KINDS) * len(SHAPES)
        for kind in KINDS:
            for shape, (_, _, scale) in SHAPES.items():
                got, want = (ours[kind, shape, kernel] for kernel in ("triton", "torch"))
                torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6 * max(1.0, scale))


def test_update_equals_transformers(tmp_path: Path) -> None:
    """The setting reaches every pass of the trainer over logits."""
    make_tiny_model("qwen2-bias", tmp_path / "student")
    make_tiny_model("llama", tmp_path / "teacher")
    (ours, _) = run_distributed_test(one_update, 2, tmp_path)
    assert set(ours["programs"]) == {"reduce_rows", "gradient_blocks"}
    for name in UPDATES:
        expected = steps.reference(tmp_path, steps.settings(tmp_path, steps.OBJECTIVES[name]))
        steps.assert_same_update(ours["tensor", name], expected, "tensor, Triton kernels")
