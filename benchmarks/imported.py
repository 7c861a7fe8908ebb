"""Imported by the server that forks the runs of ready.py: what every run would import."""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import sys

for name in (
    "transformers.models.auto.modeling_auto",
    "torch.distributed.checkpoint",
    "vllm.v1.engine.llm_engine",
    "scope_megatron.train.run",
    "scope_megatron.train.trainer",
    "scope_megatron.instruments.evaluation.run",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
):
    importlib.import_module(name)
gc.collect()
gc.freeze()  # the forks need not look through all that
if any("multiprocessing.forkserver" in word for word in sys.orig_argv):
    atexit.register(os._exit, 0)  # what is imported complains where it is taken apart
