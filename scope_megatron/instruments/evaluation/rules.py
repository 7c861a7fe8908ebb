"""The rules of an evaluation's options. Each yields `--option: what is wrong; what to do`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from scope_megatron import outputs
from scope_megatron.config import (
    CPU_HEAD_DIMS,
    VerifierConfig,
)
from scope_megatron.config.keys import choices
from scope_megatron.config.modeldir import ModelDirError, check_weights, read_shape, tokenizer_file
from scope_megatron.config.rules_data import source_problems
from scope_megatron.config.rules_machine import engine_build_problems, full_gpu_problems
from scope_megatron.family import FAMILIES
from scope_megatron.instruments.evaluation.settings import EvaluationSettings
from scope_megatron.instruments.evaluation.source import architecture, read_context
from scope_megatron.machine import Machine, choose, ranks_here
from scope_megatron.machine.device import SETTINGS

if TYPE_CHECKING:
    from scope_megatron.instruments.evaluation.options import Options

LONGEST_PROMPT, LONGEST_RESPONSE = 4096, 32_768  # the paper's
DTYPES = ("auto", "float32", "bfloat16")
AT_LEAST = {
    "n": 1,
    "top_k": -1,
    "max_tokens": 1,
    "max_prompt_tokens": 1,
    "limit": 1,
    "seed": 0,
    "workers": 1,
    "engines": 1,
    "engine_tensor": 1,
    "max_num_seqs": 1,
    "draws": 100,
}
BY_CONFIG = {
    "device": "platform.device",
    "engines": "parallel.data",
    "engine_tensor": "rollout.engine.tensor",
    "gpu_memory_utilization": "rollout.engine.gpu_memory_utilization",
    "kv_cache_gib": "rollout.engine.kv_cache_gib",
    "max_num_seqs": "rollout.engine.max_num_seqs",
}
Refusals = Iterator[str]


def option_problems(options: Options, has_config: bool) -> Refusals:
    """Rules on single options, before anything else is looked at."""
    for name, least in AT_LEAST.items():
        value = getattr(options, name)
        if value is not None and value < least:
            yield f"{_flag(name)}: is {value} but must be >= {least}; correct it"
    if options.temperature is not None and not 0 <= options.temperature < float("inf"):
        yield f"--temperature: is {options.temperature:g} but must be >= 0; correct it"
    for name in ("top_p", "gpu_memory_utilization"):
        value = getattr(options, name)
        if value is not None and not 0 < value <= 1:
            yield f"{_flag(name)}: is {value:g} but must be above 0 and at most 1; correct it"
    if options.kv_cache_gib is not None and not 0 < options.kv_cache_gib < float("inf"):
        yield f"--kv-cache-gib: is {options.kv_cache_gib:g} but must be > 0; correct it"
    known = choices(VerifierConfig.model_fields["name"])
    for name, allowed in (("verifier", known), ("dtype", DTYPES), ("device", SETTINGS)):
        value = getattr(options, name)
        if value is not None and value not in allowed:
            yield f"--{name}: {value!r} is not one of {', '.join(allowed)}; choose one"
    if has_config:
        for name, key in BY_CONFIG.items():
            if getattr(options, name) is not None:
                yield f"{_flag(name)}: the configuration decides it; set {key}=VALUE instead"


def settings_problems(settings: EvaluationSettings) -> Refusals:
    """Rules between settings, and between settings and what is on disk."""
    yield from _sampling(settings)
    yield from _sets(settings)
    yield from _model(settings)
    yield from _out(settings)
    yield from custom_problems(settings.verifier.name, settings.verifier.custom)
    yield from _ranks(settings)


def _ranks(settings: EvaluationSettings) -> Refusals:
    tensor, machine = settings.engine.tensor, choose(settings.device)
    if machine.problem:
        yield f"--device: {machine.problem}"
        return
    yield from engine_build_problems("--device", machine)
    share = settings.engine.gpu_memory_utilization
    yield from full_gpu_problems("--gpu-memory-utilization", machine, share, settings.ranks)
    here = ranks_here(settings.ranks, machine)
    if machine.device == "cuda" and here is not None and here > machine.gpus:
        yield (
            f"--engines: with --engine-tensor {tensor} makes {here} ranks on this machine, which "
            f"has {machine.gpus} GPUs for them; lower one of them"
        )
    if settings.ranks % tensor:
        yield (
            f"--engine-tensor: is {tensor}, not a divisor of the {settings.ranks} started ranks; "
            f"start a multiple of {tensor}"
        )


def engine_ranks(options: Options, machine: Machine) -> int:
    """Processes of the evaluation: those that torchrun or Slurm started, or engines x tensor."""
    world, tensor = os.environ.get("WORLD_SIZE", ""), options.engine_tensor or 1
    if "RANK" in os.environ and world.isdigit():
        if options.engines is not None and options.engines * tensor != int(world):
            from scope_megatron.config import ConfigError

            raise ConfigError(
                f"--engines: {options.engines} x --engine-tensor {tensor} is "
                f"{options.engines * tensor} but WORLD_SIZE is {world}; leave it out"
            )
        return int(world)
    if options.engines is not None:
        return options.engines * tensor
    return max(1, machine.gpus // tensor) * tensor


def usual_lengths(options: Options, base: Path) -> tuple[int, int]:
    """(prompt, response) limits in tokens: the paper's, as far as the model's context goes."""
    context = read_context(base)
    if context is None:
        prompt = options.max_prompt_tokens or LONGEST_PROMPT
        return prompt, options.max_tokens or LONGEST_RESPONSE
    prompt = options.max_prompt_tokens or min(LONGEST_PROMPT, max(1, context // 4))
    response = options.max_tokens or LONGEST_RESPONSE
    return prompt, max(1, min(response, context - prompt))


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def custom_problems(verifier: str, function: str | None) -> Refusals:
    """A function of the user's goes with the verifier that calls it."""
    if function is None:
        if verifier == "custom":
            yield "--custom: is missing but --verifier custom needs it; give module:function"
    elif not all(function.partition(":")):
        yield f"--custom: {function} names no function; give module:function"


def _sampling(settings: EvaluationSettings) -> Refusals:
    if settings.temperature == 0 and settings.samples > 1:
        yield (
            f"--temperature: is 0, which makes all {settings.samples} samples of a problem alike; "
            "set --n 1 or a temperature above 0"
        )


def _sets(settings: EvaluationSettings) -> Refusals:
    names = [entry.name for entry in settings.sets]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"--data: two sets are called {name}; name them, as --data NAME=PATH"
    for entry in settings.sets:
        yield from (f"--data: {problem}" for problem in source_problems(entry.source))


def _model(settings: EvaluationSettings) -> Refusals:
    """What vLLM will ask of it. An architecture that training does not know is vLLM's to judge,
    unless its weights must be converted first."""
    base, source = settings.source.base, settings.source
    context = read_context(base)
    if context is not None and settings.max_prompt_tokens + settings.max_tokens > context:
        yield (
            f"--max-prompt-tokens: is {settings.max_prompt_tokens}, with --max-tokens "
            f"{settings.max_tokens} above the model's {context} positions; lower one of them"
        )
    try:
        tokenizer_file(settings.tokenizer or base)
        if not source.is_checkpoint and architecture(base) not in FAMILIES:
            return
        shape = read_shape(base)
        if not source.is_checkpoint:
            check_weights(source.weights, shape.tied)
    except ModelDirError as error:
        yield f"--model: {error}"
        return
    if settings.device == "cpu" and shape.head_dim not in CPU_HEAD_DIMS:
        allowed = ", ".join(map(str, CPU_HEAD_DIMS))
        yield (
            f"--model: has head_dim {shape.head_dim}, which the CPU engine cannot serve; "
            f"use a model with head_dim {allowed}"
        )
    if settings.top_k > shape.vocab:
        yield (
            f"--top-k: is {settings.top_k}, above the vocabulary's {shape.vocab} tokens; "
            f"set it to {shape.vocab} or less"
        )
    for name, size in shape.divided().items():
        if name != "num_hidden_layers" and size % settings.engine.tensor:
            yield (
                f"--engine-tensor: is {settings.engine.tensor}, not a divisor of the model's "
                f"{name} {size}; choose one that is"
            )


def _out(settings: EvaluationSettings) -> Refusals:
    out = settings.out
    existing = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not existing.is_dir():
        yield f"--out: {existing} is a file; give a directory"
    elif not os.access(existing, os.W_OK | os.X_OK):
        yield f"--out: {existing} is not writable; give another directory"
    elif out.is_dir() and any(out.iterdir()) and not (out / "evaluation.json").exists():
        if {path.name for path in out.iterdir()} - {outputs.LOCK, "problems"}:
            yield f"--out: {out} is not empty and holds no evaluation; give another directory"
