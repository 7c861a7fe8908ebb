"""What only a GPU runs: attention in one launch, products that add up, an optimizer that leaves.

Each is compared with the path that the CPU's tests prove.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.harness import run_distributed_test
from tests.support.tiny_hf import make_tiny_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

LENGTHS = (1, 300, 77, 1000)
HEADS, GROUPS = 8, 2


def require_agreement(layer: Any, inputs: list[Tensor], upstream: Tensor, params: Any) -> None:
    """The varlen kernel in bfloat16 against the loop in float32: output and gradients."""
    results = []
    for dtype in (torch.bfloat16, torch.float32):
        leaves = [x.to(dtype).requires_grad_() for x in inputs]
        assert layer._takes_varlen(leaves[0]) is (dtype == torch.bfloat16)
        output = layer(*leaves, packed_seq_params=params)
        output.backward(upstream.to(dtype))
        results.append([output, *(leaf.grad for leaf in leaves)])
    for got, expected in zip(*results, strict=True):
        assert got is not None and expected is not None
        error = (got.float() - expected).norm() / expected.norm()
        assert error < 0.02, float(error)


@pytest.mark.parametrize("width", [64, 128, 256])
@pytest.mark.parametrize("window", [None, 1, 100])
def test_one_launch_equals_the_loop(width: int, window: int | None) -> None:
    """bfloat16 against the loop in float32, and the gradients."""
    from megatron.core.transformer.enums import AttnMaskType
    from megatron.core.transformer.transformer_config import TransformerConfig

    from scope_megatron.model.attention import PackedCausalAttention
    from scope_megatron.objective import build
    from scope_megatron.parallel.packed import PackedSequences

    config = TransformerConfig(num_layers=1, hidden_size=HEADS * width, num_attention_heads=HEADS)
    layer = PackedCausalAttention(config, 1, AttnMaskType.causal, "self", windows=[window])
    device = torch.device("cuda")
    pack = build([((0,) * length, ()) for length in LENGTHS], list(range(len(LENGTHS))))
    params = PackedSequences.of(pack.to(device))
    generator = torch.Generator(device).manual_seed(0)

    def random(heads: int) -> Tensor:
        shape = (sum(LENGTHS), heads, width)
        return torch.randn(shape, generator=generator, device=device).bfloat16()

    inputs = [random(HEADS), random(GROUPS), random(GROUPS)]
    require_agreement(layer, inputs, random(HEADS).flatten(1), params)


@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("rank", [0, 1])
def test_one_launch_over_a_share_of_a_pack_equals_the_loop(rank: int, window: int | None) -> None:
    """As with context parallelism, all keys and values being there already."""
    from megatron.core.transformer.enums import AttnMaskType
    from megatron.core.transformer.transformer_config import TransformerConfig

    from scope_megatron.model.attention import PackedCausalAttention
    from scope_megatron.objective import build
    from scope_megatron.parallel.context import ContextShare
    from scope_megatron.parallel.packed import PackedSequences

    class Gathered(ContextShare):
        def gather(self, local: Tensor) -> Tensor:
            return local

    config = TransformerConfig(num_layers=1, hidden_size=HEADS * 64, num_attention_heads=HEADS)
    layer = PackedCausalAttention(config, 1, AttnMaskType.causal, "self", windows=[window])
    device = torch.device("cuda")
    pack = build([((0,) * n, ()) for n in LENGTHS], list(range(len(LENGTHS))), 4).to(device)
    place: Any = type("Place", (), {"cp_rank": rank, "cp_size": 2, "cp_group": object()})
    share = Gathered.of(pack, place)
    assert share is not None
    generator = torch.Generator(device).manual_seed(0)

    def random(tokens: int, heads: int) -> Tensor:
        return torch.randn((tokens, heads, 64), generator=generator, device=device).bfloat16()

    own, total = len(share.tokens), pack.num_tokens
    inputs = [random(own, HEADS), random(total, GROUPS), random(total, GROUPS)]
    upstream = random(own, HEADS).flatten(1)
    require_agreement(layer, inputs, upstream, PackedSequences.of(pack, share))


def test_the_weights_gradient_accumulates_in_its_product() -> None:
    from scope_megatron.objective.head.hidden import _accumulates, _add_matmul

    device = torch.device("cuda")
    assert _accumulates(device), "this torch refuses it: the head works, with a product beside it"
    generator = torch.Generator(device).manual_seed(0)
    out, left, right = (
        torch.randn(shape, generator=generator, device=device)
        for shape in ((384, 96), (384, 256), (256, 96))
    )
    expected = out + left.bfloat16().float() @ right.bfloat16().float()
    _add_matmul(out, left.bfloat16(), right.bfloat16())
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("distributed", [False, True], ids=["optimizer", "distributed-optimizer"])
def test_an_optimizer_that_leaves_frees_the_device(tmp_path: Path, distributed: bool) -> None:
    make_tiny_model("llama-tied", tmp_path / "student")
    make_tiny_model("llama", tmp_path / "teacher")
    (result,) = run_distributed_test(
        update_and_leave, 1, tmp_path, distributed, timeout=240, backend="nccl"
    )
    stays, leaves = result[False], result[True]
    for name, tensor in stays["weights"].items():
        assert torch.equal(leaves["weights"][name], tensor), name
    # Adam's moments, the float32 copy and the gradients: 16 bytes a parameter
    assert stays["allocated"] - leaves["allocated"] > 12 * stays["parameters"]
    assert stays["fused"] == leaves["fused"]


def update_and_leave(
    rank: int, world_size: int, root: Path, distributed: bool
) -> dict[bool, dict[str, Any]]:
    from scope_megatron.parallel import platform

    platform.initialize()
    from megatron.core import parallel_state

    from scope_megatron.learn.learner import Learner
    from scope_megatron.parallel.offload import OptimizerPlace
    from scope_megatron.parallel.topology import create_topology
    from tests.distributed.test_checkpoint import update, weights
    from tests.distributed.test_step_layouts import settings

    results = {}
    for offload in (False, True):
        parallel_state.destroy_model_parallel()
        topology = create_topology()
        changes = {"model.dtype": "bfloat16", "optimizer.distributed": distributed}
        learner = Learner(settings(root, changes), topology)
        student = learner.student
        place = OptimizerPlace(student.ddp, student.optimizer, offload)
        for _ in range(2):
            with place.resident():
                update(learner, topology)
        torch.cuda.synchronize()
        allocated = torch.cuda.memory_allocated()
        results[offload] = {
            "weights": {name: tensor.cpu() for name, tensor in weights(learner, topology).items()},
            "allocated": allocated,
            "parameters": sum(p.numel() for p in student.model.parameters()),
            "fused": [group.get("fused") for group in student.optimizer.param_groups],
        }
        del learner, student, place
        torch.cuda.empty_cache()
    return results


@pytest.mark.timeout(300)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_streamed_teacher_scores_the_same_and_frees_the_device(
    tmp_path: Path, dtype: str
) -> None:
    make_tiny_model("llama-tied", tmp_path / "student")
    make_tiny_model("llama", tmp_path / "teacher", layers=9)  # odd: buffers change sides
    (result,) = run_distributed_test(
        update_by_streamed_teacher, 1, tmp_path, dtype, timeout=240, backend="nccl"
    )
    stays, streamed = result["none"], result["cpu"]
    for name, tensor in stays["weights"].items():
        assert torch.equal(streamed["weights"][name], tensor), name
    assert stays["held"] == stays["at rest"]
    assert streamed["at rest"] == 0 < streamed["held"] < stays["held"]
    assert stays["allocated"] - streamed["allocated"] > 0.8 * stays["held"]


def update_by_streamed_teacher(
    rank: int, world_size: int, root: Path, dtype: str
) -> dict[str, dict[str, Any]]:
    from scope_megatron.parallel import platform

    platform.initialize()
    from tests.distributed.test_checkpoint import weights
    from tests.distributed.test_teacher_offload import held_bytes, learner_of, share
    from tests.support.steps import one_step

    results = {}
    for offload in ("none", "cpu"):
        changes = {"model.dtype": dtype, "teacher.offload": offload, "objective.kl": "reverse_kl"}
        learner = learner_of(root, {}, changes)
        for _ in range(3):
            one_step(learner, share(learner))
            held = held_bytes(learner.frozen[0].tensors())
            learner.rest_frozen(updates_to_come=False)
        torch.cuda.synchronize()
        results[offload] = {
            "weights": {n: t.cpu() for n, t in weights(learner, learner.topology).items()},
            "held": held,
            "at rest": held_bytes(learner.frozen[0].tensors()),
            "allocated": torch.cuda.memory_allocated(),
        }
        del learner
        torch.cuda.empty_cache()
    return results
