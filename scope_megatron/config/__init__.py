"""The run's configuration: schema, loading and every check that needs no torch.

schema          the sections and settings (pydantic)
sections/       sections in files of their own: data, objective, parallel, ...
load            YAML file and key=value overrides -> Config
keys            the schema as data: every key, the nearest key to a wrong one, defaults
rules           rules that join several settings, or settings and files
rules_algorithm  rules on the algorithm and its loss
rules_models    rules that read the models' directories
rules_data      rules on data sets
rules_output    rules on output_dir
modeldir        a Hugging Face directory, read without torch
rules_machine   rules on device, ranks, GPUs and packages
layout          sizes of parallel that are auto
names           Hub names, looked up and put at their commits
errors          ConfigError: one line per problem
reference       the table of every key, as Markdown
"""

from __future__ import annotations

from scope_megatron.config.errors import ConfigError
from scope_megatron.config.load import load_config
from scope_megatron.config.modeldir import CPU_HEAD_DIMS
from scope_megatron.config.reference import reference_markdown
from scope_megatron.config.rules_algorithm import setting_warnings
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
    PlatformConfig,
    ProfileConfig,
    RolloutConfig,
    TeacherConfig,
    TeacherEntry,
    TrainConfig,
    VerifierConfig,
)
from scope_megatron.machine import validating_for

__all__ = [
    "CPU_HEAD_DIMS",
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
    "PlatformConfig",
    "ProfileConfig",
    "RolloutConfig",
    "TeacherConfig",
    "TeacherEntry",
    "TrainConfig",
    "VerifierConfig",
    "load_config",
    "reference_markdown",
    "setting_warnings",
    "validating_for",
]
