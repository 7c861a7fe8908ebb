"""A student with random weights and a filled optimizer, made without a model directory."""

from __future__ import annotations

from typing import Any

import torch


def training_state(world_size: int, layers: int, hidden: int, vocab: int = 8192) -> Any:
    """A Qwen2 student of random weights whose optimizer has states."""
    from scope_megatron.checkpoint.state import TrainingState
    from scope_megatron.config import OptimizerConfig
    from scope_megatron.model.build import build_model
    from scope_megatron.parallel.optimizer import (
        before_loading,
        build_optimizer,
        build_scheduler,
        wrap_student,
    )
    from scope_megatron.parallel.topology import create_topology

    topology = create_topology(world_size)
    hf = {
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_attention_heads": hidden // 64,
        "num_key_value_heads": hidden // 64,
        "num_hidden_layers": layers,
        "vocab_size": vocab,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
    }
    model = build_model(hf, topology, torch.float32, trainable=True)
    settings = OptimizerConfig(lr=1e-4)
    ddp = wrap_student(model, settings)
    optimizer = build_optimizer(ddp, settings, torch.float32)
    before_loading(optimizer)  # fills the states
    return TrainingState(model, optimizer, build_scheduler(optimizer, settings, 100), topology)
