"""The run's configuration: schema, loading and every check that needs no torch."""

from __future__ import annotations

from scope_megatron.config.errors import ConfigError
from scope_megatron.config.load import load_config
from scope_megatron.config.machine import cuda_visible, validating_for
from scope_megatron.config.modeldir import (
    CPU_HEAD_DIMS,
    KNOWN_ARCHITECTURES,
    KNOWN_ROPE_TYPES,
)
from scope_megatron.config.reference import reference_markdown
from scope_megatron.config.schema import (
    AlgorithmConfig,
    CheckpointConfig,
    Config,
    DataConfig,
    EngineConfig,
    EvaluationConfig,
    FaultsConfig,
    LoggingConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    ParallelConfig,
    RolloutConfig,
    TrainConfig,
    VerifierConfig,
)

__all__ = [
    "CPU_HEAD_DIMS",
    "KNOWN_ARCHITECTURES",
    "KNOWN_ROPE_TYPES",
    "AlgorithmConfig",
    "CheckpointConfig",
    "Config",
    "ConfigError",
    "DataConfig",
    "EngineConfig",
    "EvaluationConfig",
    "FaultsConfig",
    "LoggingConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimizerConfig",
    "ParallelConfig",
    "RolloutConfig",
    "TrainConfig",
    "VerifierConfig",
    "cuda_visible",
    "load_config",
    "reference_markdown",
    "validating_for",
]
