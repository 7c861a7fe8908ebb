"""The choice between the torch path and the Triton kernels, and the kernels' calls.

The torch path of ``statistics.py`` and ``gradient.py`` runs everywhere and is the reference. The
kernels give the same columns and the same gradient in float32: the forward reads the logits once
instead of once for each operation, and so does the backward (jsd: one more pass for the mixture).
They need CUDA tensors and Triton; ``objective.kernel`` says who computes:

    torch   the torch path
    auto    the kernels for CUDA tensors where Triton imports, else the torch path
    triton  the kernels, or an error

Float64 logits, topk and entropy_kl are the torch path's whatever the setting: no GPU is fast in the
first, topk is mostly torch.topk. Triton is imported at the first use alone. With TRITON_INTERPRET=1
in the environment before that, ``triton`` also computes CPU tensors, slowly: for tests.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import warnings
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from scope_megatron.objective.head.shard import Shard
from scope_megatron.objective.head.spec import Spec

# columns that a program holds at once
REDUCE_BLOCK, GRADIENT_BLOCK = 4096, 2048
_WARPS = {"reduce": 8, "gradient": 4}
_TYPES = (torch.float32, torch.bfloat16, torch.float16)


def chosen(logits: Tensor, teacher: Tensor | None, spec: Spec) -> bool:
    """Whether the kernels compute this call.

    Raises:
        ValueError: ``triton`` is asked for where it cannot run.
    """
    if spec.kernel == "torch" or spec.divergence in ("topk", "entropy_kl"):
        return False
    if logits.dtype not in _TYPES or (teacher is not None and teacher.dtype not in _TYPES):
        return False
    if spec.kernel == "auto":
        return logits.is_cuda and _programs() is not None
    if not logits.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            f"objective.kernel: is triton but the logits are on {logits.device}, not CUDA; "
            "set it to auto or torch"
        )
    if _programs() is None:
        raise ValueError(
            "objective.kernel: is triton but Triton does not import; install triton, "
            "or set it to auto or torch"
        )
    return True


def reduce(
    logits: Tensor, teacher: Tensor | None, targets: Tensor | None, out: Tensor, shard: Shard,
    spec: Spec,
) -> None:  # fmt: skip
    """Fill ``out`` with what ``vocab._reduce`` says: [T, 3], [T, 4] or [T, 7] float32, zeros."""
    block = _block(REDUCE_BLOCK, shard.width)
    with torch.cuda.device_of(logits):
        _run(
            "reduce_rows", logits.shape[0], "reduce",
            logits, teacher, _rows(targets), out, *logits.stride(), *_stride(teacher),
            shard.start, shard.width, spec.temperature, spec.teacher_temperature,
            KIND=_kind(spec), COLUMNS=out.shape[1], BLOCK=block,
        )  # fmt: skip


def mixture(
    logits: Tensor, teacher: Tensor, statistics: tuple[Tensor | None, ...], out: Tensor,
    shard: Shard, spec: Spec,
) -> None:  # fmt: skip
    """Fill ``out`` [T, 2] float32 as ``vocab.local_mixture``.

    ``statistics`` [T] are the whole vocabulary's top, norm, teacher_top and teacher_norm.
    """
    with torch.cuda.device_of(logits):
        _run(
            "mixture_rows", logits.shape[0], "reduce",
            logits, teacher, *map(_rows, statistics), out, *logits.stride(), *teacher.stride(),
            shard.width, spec.temperature, spec.teacher_temperature, spec.beta,
            BLOCK=_block(REDUCE_BLOCK, shard.width),
        )  # fmt: skip


def gradient(
    logits: Tensor, teacher: Tensor | None, targets: Tensor | None,
    statistics: tuple[Tensor | None, ...], upstream: tuple[Tensor | None, Tensor | None],
    grad: Tensor, shard: Shard, spec: Spec,
) -> None:  # fmt: skip
    """Fill ``grad`` [T, W], which may be the logits, as ``gradient.logits_gradient``.

    ``statistics`` [T] are top, norm, mean, teacher_top and teacher_norm.
    """
    scored = upstream[1] is not None and spec.dense
    given = statistics if scored else (*statistics[:2], None, None, None)
    teacher = teacher if scored else None
    columns = logits.shape[1]
    block = _block(GRADIENT_BLOCK, columns)
    blocks = -(-columns // block)
    with torch.cuda.device_of(logits):
        _run(
            "gradient_blocks", logits.shape[0] * blocks, "gradient",
            logits, teacher, _rows(targets), grad, *map(_rows, given), *map(_rows, upstream),
            *logits.stride(), *_stride(teacher), *grad.stride(), blocks,
            shard.start, shard.width, columns,
            spec.temperature, spec.teacher_temperature, spec.beta,
            KIND=_kind(spec) if scored else "logprob", BLOCK=block,
        )  # fmt: skip
    # autograd does not see what a kernel writes: whoever else saved the logits gets an error
    torch.autograd.graph.increment_version(grad)


def _run(name: str, programs: int, what: str, *args: Any, **constants: Any) -> None:
    if programs:  # a grid of none is an error
        module = _programs()
        assert module is not None
        # without fused multiply-adds: equal logits of both models differ by exactly zero
        options = {"num_warps": _WARPS[what], "enable_fp_fusion": False}
        getattr(module, name)[(programs,)](*args, **constants, **options)


def _kind(spec: Spec) -> str:
    return spec.divergence or ("entropy" if spec.with_entropy else "logprob")


def _block(most: int, columns: int) -> int:
    """A power of two that is not much larger than a row."""
    return min(most, 1 << max(0, columns - 1).bit_length())


def _rows(column: Tensor | None) -> Tensor | None:
    return None if column is None else column.contiguous()


def _stride(matrix: Tensor | None) -> tuple[int, ...]:
    return (0, 0) if matrix is None else matrix.stride()


@functools.cache
def _programs() -> ModuleType | None:
    """The module that needs Triton; None, with a warning, where an installed Triton is broken."""
    if importlib.util.find_spec("triton") is None:
        return None
    try:
        importlib.import_module("triton")
    except Exception as error:  # a broken extension raises OSError, RuntimeError, ...
        warnings.warn(
            f"Triton does not import ({error}): the loss takes the slower torch path", stacklevel=2
        )
        return None
    return importlib.import_module("scope_megatron.objective.head.triton_kernels")
