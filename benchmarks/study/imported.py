"""Imported by the server that forks the study's runs (ready.py): what every run would import."""

from __future__ import annotations

import gc
import importlib

for name in (
    "transformers.models.auto.modeling_auto",
    "torch.distributed.checkpoint",
    "vllm.v1.engine.llm_engine",
    "scope_megatron.train.run",
    "scope_megatron.train.trainer",
    "scope_megatron.evaluation.run",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
):
    importlib.import_module(name)
gc.collect()
gc.freeze()  # the forks need not look through all that
