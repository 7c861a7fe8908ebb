"""Packages that a setting needs: looked for, not imported, before anything is built."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec

# Module -> what to tell pip. The limits are setup.py's.
_INSTALL = {
    "torch": "bash tools/setup_env.sh",
    "megatron.core": "bash tools/setup_env.sh",
    "vllm": "bash tools/setup_env.sh",
    "math_verify": "pip install 'math-verify==0.9.0'",
    "pyarrow": "pip install 'pyarrow>=24'",
    "datasets": "pip install 'datasets>=5,<6'",
    "sentencepiece": "pip install 'sentencepiece>=0.2'",
    "tensorboard": "pip install 'tensorboard>=2.16'",
    "triton": "pip install triton",
    "wandb": "pip install 'wandb>=0.18'",
}


def missing_packages(modules: Iterable[str]) -> list[tuple[str, str]]:
    """(module, command that installs it) of those of ``modules`` that are not there."""
    return [(module, _INSTALL[module]) for module in modules if not _is_there(module)]


def _is_there(module: str) -> bool:
    # Not a submodule: find_spec would run its parent.
    return find_spec(module.partition(".")[0]) is not None
