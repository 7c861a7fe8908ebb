"""Builders of a run's parts: process groups, data, models, optimizer, engine."""

from __future__ import annotations

import socket
from typing import Any

import torch

from scope_megatron.config import Config, FaultsConfig
from scope_megatron.config.sections.data import eval_setting
from scope_megatron.data.dataset import PromptDataset, open_dataset
from scope_megatron.data.tokenizer import Tokenizer, load_tokenizer
from scope_megatron.engine.interface import Engine
from scope_megatron.engine.vllm import VLLMEngine
from scope_megatron.family import ModelShape
from scope_megatron.job.launcher import end_with_launcher
from scope_megatron.job.watchdog import job_store
from scope_megatron.model.build import read_hf_config
from scope_megatron.parallel import platform
from scope_megatron.parallel.meeting import job_place, own_address
from scope_megatron.parallel.topology import Topology, create_topology, initialize_distributed
from scope_megatron.trace import spans
from scope_megatron.trace.clock import Clock, ClockAddress, ClockServer
from scope_megatron.trace.files import RankFile
from scope_megatron.trace.spans import Recorder

_CLOCK = "trace/clock"  # in the job's store: where rank 0 tells the time
WATCHDOG_FIRST_S = 300.0  # it dumps stacks, and the other ranks hear of its verdict


def join_job(config: Config) -> None:
    """Join the job, as a rank that trains or one that only samples (collective)."""
    end_with_launcher()
    platform.initialize()
    initialize_distributed(collective_timeout_s(config.faults), config.sampling_ranks)
    start_trace(config)


def start_process(config: Config) -> Topology:
    """Join the job and lay the training ranks out (collective over them)."""
    join_job(config)
    parallel, timeout_s = config.parallel, collective_timeout_s(config.faults)
    return create_topology(
        parallel.tensor,
        parallel.pipeline,
        parallel.sequence,
        config.seed,
        expert=parallel.expert,
        context=parallel.context,
        timeout_s=timeout_s,
    )


def start_trace(config: Config) -> None:
    """Record what this rank does, where ``logging.trace`` asks for it, on rank 0's clock.

    Where it does, the ranks wait here until rank 0 has joined.
    """
    settings, place = config.logging.trace, job_place()
    if settings.steps is None:
        return
    clock = Clock()
    if place.size > 1:
        store, _ = job_store(collective_timeout_s(config.faults))
        if place.rank == 0:
            store.set(_CLOCK, ClockServer(own_address()).address.encode())
        clock = Clock(ClockAddress.decode(store.get(_CLOCK)))
    kind = "samples" if place.samples_only else "trains"
    name = f"rank {place.rank} ({kind}, {socket.gethostname()})"
    file = RankFile(config.output_dir, place.rank, name)
    spans.start(Recorder(file, clock, settings.covers))


def collective_timeout_s(faults: FaultsConfig) -> float:
    """Seconds after which a collective gives up: later than the watchdog, which names the rank.

    NCCL aborts the process then, with SIGABRT and without a word on who is missing.
    """
    return faults.hang_timeout_s + WATCHDOG_FIRST_S


def build_engine(config: Config, tokenizer: Tokenizer) -> Engine:
    """The rollout engine of this rank; it never sleeps where no trainer shares its memory."""
    settings = config.engine
    if config.separate:
        settings = settings.model_copy(update={"sleep": False})
    return VLLMEngine(
        config.model.student,
        settings,
        max_model_len=config.max_model_len,
        dtype=platform.resolve_dtype(config.model.dtype),
        eos_ids=tokenizer.eos_ids,
        seed=config.seed,
        head_dtype=engine_head(config),
    )


def engine_head(config: Config) -> torch.dtype | None:
    """The type of the engine's logits; None: of its parameters.

    On CUDA the trainer's fused head makes float32 logits from half-precision parameters; an engine
    that rounds its own would sample from, and report, another distribution. Where the trainer's
    are rounded too (objective.head is logits, or a cap lies behind them) both stay as they are.
    """
    models = [config.model.student, *(entry.path for entry in config.teachers.values())]
    capped = any(
        ModelShape.of(read_hf_config(directory)).logits_cap is not None for directory in models
    )
    rounded = config.objective.head == "logits" or capped
    half = platform.resolve_dtype(config.model.dtype) != torch.float32
    return torch.float32 if platform.has_cuda() and half and not rounded else None


def build_tokenizer(config: Config) -> Tokenizer:
    path = config.model.tokenizer or config.model.student
    return load_tokenizer(path, config.data.chat_template_kwargs)


def build_train_data(config: Config, tokenizer: Tokenizer) -> PromptDataset:
    return open_dataset(config, "data.train", config.data.train, tokenizer)


def build_eval_data(config: Config, tokenizer: Tokenizer) -> dict[str, PromptDataset]:
    """The evaluation sets by name ("" for one without); the configuration's rules say that they
    are there when they are asked for."""
    assert config.data.eval is not None
    return {
        name: open_dataset(config, eval_setting(name), (source,), tokenizer)
        for name, source in config.data.eval.items()
    }


def found_here(identity: dict[str, Any], sets: dict[str, PromptDataset]) -> dict[str, str]:
    """What this rank found on its machine, by setting: it must be the same on all of them."""
    keys = ("data.train", "model.tokenizer", "model.student", "model.teacher")
    found = {
        key: value
        for key, value in identity.items()
        if key in keys or key.startswith("model.teachers.")
    }
    return found | {eval_setting(name): data.fingerprint() for name, data in sets.items()}
