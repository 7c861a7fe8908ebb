"""What the server that forks the ranks of a test has imported already (see harness.py).

Every rank would import the same for seconds. Nothing here may start a thread or look at a GPU:
threads are not there any more after a fork. What is missing is left to whoever needs it.
"""

from __future__ import annotations

import importlib
import os

from tests.support.harness import ENGINES_TOO

RANKS = (
    "transformers",
    "scope_megatron.parallel",  # hides what cannot be used from megatron-core, which follows
    "scope_megatron.learn.learner",
    "scope_megatron.convert.gather",
    "scope_megatron.convert.hf",
    "scope_megatron.checkpoint.saver",
    "torch.distributed.checkpoint",
    "transformers.models.auto.modeling_auto",
    "tests.support.tiny_hf",
)
ENGINES = ("scope_megatron.engine.vllm", "vllm", "vllm.v1.engine.llm_engine")

os.environ["TORCH_WARM_POOL"] = "0"  # importing torch's compiler would start processes
for name in (*RANKS, *(ENGINES if os.environ.get(ENGINES_TOO) else ())):
    try:
        importlib.import_module(name)
    except Exception as error:
        print(f"not imported beforehand: {name}: {error}")
