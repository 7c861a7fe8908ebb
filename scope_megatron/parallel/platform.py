"""The one place that knows CUDA/NCCL from CPU/gloo.

Where CUDA is present nothing is changed: NCCL, Transformer Engine's layers and fused kernels when
they import, else torch. Without CUDA, :func:`initialize` adapts megatron-core, whose only real
obstacle is that it names CUDA; each line below says what it stands for.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import os
import sys
import types
from typing import Any

import torch

from scope_megatron.machine import DEVICE_VARIABLE
from scope_megatron.parallel import gloo

_CUDA_WORDS = {
    "cuda": "cpu",
    "torch.cuda.FloatTensor": "torch.FloatTensor",
    "torch.cuda.HalfTensor": "torch.HalfTensor",
    "torch.cuda.BFloat16Tensor": "torch.BFloat16Tensor",
}

# Modules whose functions hold the words above as literals.
_MODULES_NAMING_CUDA = (
    "megatron.core.pipeline_parallel.schedules",  # torch.zeros(..., device="cuda") token counters
    "megatron.core.utils",  # the torch stand-ins for the multi-tensor kernels
    "megatron.core.optimizer.clip_grads",  # norms; the gradient's type() string
    "megatron.core.optimizer.optimizer",  # found_inf, scale; main-parameter type() strings
    "megatron.core.optimizer.distrib_optimizer",  # type() strings of the sharded parameters
    "megatron.core.optimizer.grad_scaler",
    "megatron.core.distributed.param_and_grad_buffer",
)


def has_cuda() -> bool:
    """True when the job runs on CUDA devices (``platform.device``; chosen in machine/device.py)."""
    return os.environ.get(DEVICE_VARIABLE) != "cpu" and bool(torch.cuda.is_available())


def has_transformer_engine() -> bool:
    """True when Transformer Engine is used (CUDA only; never a requirement): when megatron-core
    says so, which also asks for parts of it that may go one day."""
    from megatron.core.extensions import transformer_engine

    return has_cuda() and bool(transformer_engine.HAVE_TE)


def has_apex() -> bool:
    """True when NVIDIA's Apex is used (see :mod:`scope_megatron.parallel.optional`)."""
    return has_cuda() and "apex" in sys.modules and sys.modules["apex"] is not None


def device() -> torch.device:
    """The device of this rank."""
    if has_cuda():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def device_name() -> str:
    """This rank's device for people: `CPU`, or the GPU's name and memory."""
    if not has_cuda():
        return "CPU"
    properties = torch.cuda.get_device_properties(device())
    return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"


_CONNECTION_ERRORS = (
    "closed by peer",
    "reset by peer",
    "Broken pipe",
    "Connection refused",
    "NCCL",
)


def lost_connection(error: BaseException) -> bool:
    """Whether gloo or NCCL says by ``error`` that another rank does not answer."""
    text = str(error)
    return isinstance(error, RuntimeError) and any(word in text for word in _CONNECTION_ERRORS)


def backend() -> str:
    """The torch.distributed backend of the collectives."""
    return "nccl" if has_cuda() else "gloo"


def resolve_dtype(name: str) -> torch.dtype:
    """``model.dtype`` to a torch dtype; ``auto`` is bfloat16 on CUDA and float32 on CPU."""
    if name == "auto":
        return torch.bfloat16 if has_cuda() else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


@functools.cache
def initialize() -> None:
    """Prepare this process, once: the device, thread count, and megatron-core on CPU."""
    logging.getLogger("megatron.core").setLevel(logging.ERROR)
    _adapt_router()
    _adapt_clipping()
    gloo.share_devices()
    if has_cuda():
        _require_device()
        torch.cuda.set_device(device())
        follow_determinism()
        return
    if os.environ.get(DEVICE_VARIABLE) == "cuda":
        raise ValueError(
            "platform.device: is cuda, and driver and torch fit each other, but torch cannot use "
            "the GPU; `scope-megatron doctor` says why, or set it to cpu"
        )
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    _adapt_torch_cuda()
    _adapt_rng_tracker()
    _adapt_expert_dispatcher()
    for name in _MODULES_NAMING_CUDA:
        _substitute_words(importlib.import_module(name))


def follow_determinism() -> None:
    """torch's part of ``platform.deterministic``: a warning where it has no such kernel."""
    if os.environ.get("SCOPE_DETERMINISTIC") == "1":
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # costs, and changes no result


def _adapt_clipping() -> None:
    """Have gradients of half precision clipped too, those of ``optimizer.states: parameters``:
    megatron-core scales float32 ones and asserts that there are no others. And where it has no
    kernel for their norm (TE's, Apex's), wait for the device once, not once per parameter."""
    from megatron.core import utils
    from megatron.core.optimizer import clip_grads
    from megatron.core.optimizer import optimizer as megatron

    if clip_grads.l2_norm_impl is utils.local_multi_tensor_l2_norm:
        clip_grads.l2_norm_impl = norm_of_all
    plain = megatron.clip_grad_by_total_norm_fp32

    def clip(parameters: Any, max_norm: float, total_norm: float, *more: Any, **named: Any) -> None:
        own = [parameters] if isinstance(parameters, torch.Tensor) else parameters
        halves = [p.grad for p in own if p.grad is not None and p.grad.dtype != torch.float32]
        if not halves:
            plain(parameters, max_norm, total_norm, *more, **named)
        elif (factor := max_norm / (total_norm + 1e-6)) < 1:
            torch._foreach_mul_(halves, factor)

    megatron.clip_grad_by_total_norm_fp32 = clip


def norm_of_all(
    chunk: int, overflow: Any, tensors: list[list[torch.Tensor]], per_tensor: bool
) -> tuple[torch.Tensor, None]:
    """([1] float32 2-norm of all tensors together, None), as ``amp_C.multi_tensor_l2norm``."""
    norms = torch._foreach_norm([tensor for part in tensors for tensor in part])
    return torch.linalg.vector_norm(torch.stack(norms)).float().reshape(1), None


def _require_device() -> None:
    """Every rank sees all GPUs of its node: torch and vLLM both take the one of LOCAL_RANK.

    Raises ValueError.
    """
    number, seen = device().index or 0, torch.cuda.device_count()
    if number >= seen:
        raise ValueError(
            f"parallel: rank {number} of this node sees {seen} GPU{'s' * (seen != 1)}; start no "
            "more ranks than GPUs, and let every rank see all of them (Slurm: --gpus-per-node, "
            "without --gpus-per-task and --gpu-bind)"
        )


def restore_allocator_options() -> None:
    """Set the user's options of torch's CUDA allocator again: vLLM 0.26 resets all of them, for
    the whole process, when an engine is built."""
    if (options := _allocator_options()) and has_cuda():
        torch.cuda.memory._set_allocator_settings(options)


def has_expandable_segments() -> bool:
    """Whether the user asks torch's CUDA allocator for segments that grow."""
    fields = (field.partition(":") for field in _allocator_options().split(","))
    given = {name.strip(): value.strip().lower() for name, _, value in fields}
    return given.get("expandable_segments") in ("true", "1")


def _allocator_options() -> str:
    """The user's options; of the two variables torch takes the first that is set."""
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
    return next((os.environ[name] for name in names if os.environ.get(name)), "")


def memory_in_use() -> dict[str, float]:
    """Peak of this process's resident memory in GiB; of its tensors: ``parallel/memory.py``."""
    import resource

    scale = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 2**30
    return {"memory/resident_gib": peak}


def release_cached_memory() -> None:
    """Give cached blocks back to the device, so that the engine can use them."""
    if has_cuda():
        torch.cuda.empty_cache()


def _adapt_torch_cuda() -> None:
    cpu = torch.device("cpu")
    torch.cuda.current_device = lambda: cpu  # device=torch.cuda.current_device()
    torch.cuda.synchronize = lambda device=None: None  # checkpoint save, timers
    torch.cuda.empty_cache = lambda: None  # checkpoint save
    torch.cuda.manual_seed = torch.manual_seed  # model_parallel_cuda_manual_seed
    torch.cuda.get_rng_state = lambda device=None: torch.get_rng_state()  # RNG tracker
    torch.cuda.set_rng_state = lambda state, device=None: torch.set_rng_state(state)
    torch.Tensor.cuda = lambda self, *args, **kwargs: self  # tensors read from checkpoints
    torch.nn.Module.cuda = lambda self, *args, **kwargs: self


def _adapt_rng_tracker() -> None:
    from megatron.core.tensor_parallel import random

    # Both read and write the generator of a CUDA device; here the CPU's stands for it.
    random._get_cuda_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    random._set_cuda_rng_state = lambda state, *args, **kwargs: torch.set_rng_state(state)


def _adapt_router() -> None:
    """Without Transformer Engine, 0.16 forgets to define a name that the router asks for."""
    from megatron.core.transformer.moe import moe_utils

    if not hasattr(moe_utils, "te_general_gemm"):
        moe_utils.te_general_gemm = None


def _adapt_expert_dispatcher() -> None:
    from megatron.core.transformer.moe.token_dispatcher import MoEAlltoAllTokenDispatcher

    def counts_to_numpy(
        self: MoEAlltoAllTokenDispatcher, point: str, tokens_per_expert: torch.Tensor | None = None
    ) -> torch.Tensor | None:
        for name in ("input_splits", "output_splits", "output_splits_tp"):
            counts = getattr(self, name, None)
            if isinstance(counts, torch.Tensor):
                setattr(self, name, counts.numpy())
        return tokens_per_expert

    # The token counts are copied to the host on a stream of their own: here they are there.
    MoEAlltoAllTokenDispatcher.cuda_dtoh_stream = object()
    MoEAlltoAllTokenDispatcher._maybe_dtoh_and_synchronize = counts_to_numpy


def _substitute_words(module: types.ModuleType) -> None:
    """Put the CPU's words for CUDA's into the literals of every function of ``module``."""
    for value in list(vars(module).values()):
        if isinstance(value, types.FunctionType) and value.__module__ == module.__name__:
            value.__code__ = _with_cpu_words(value.__code__)
        elif isinstance(value, type) and value.__module__ == module.__name__:
            for member in vars(value).values():
                function = getattr(member, "__func__", member)
                if isinstance(function, types.FunctionType):
                    function.__code__ = _with_cpu_words(function.__code__)


def _with_cpu_words(code: types.CodeType) -> types.CodeType:
    def swap(constant: object) -> object:
        if isinstance(constant, str):
            return _CUDA_WORDS.get(constant, constant)
        if isinstance(constant, tuple):
            return tuple(swap(item) for item in constant)
        if isinstance(constant, types.CodeType):
            return _with_cpu_words(constant)
        return constant

    # Keyword names live in co_consts too, as tuples of identifiers: no function of these modules
    # has a parameter called "cuda", so exact matches are only ever values.
    return code.replace(co_consts=tuple(swap(constant) for constant in code.co_consts))
