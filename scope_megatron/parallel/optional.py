"""Transformer Engine and Apex: used when they work, out of megatron-core's sight when they do not.

megatron-core imports both wherever it finds them and catches ImportError alone. Half of an
installation raises something else (no cuDNN, another CUDA, `transformer-engine` without
`[pytorch]`), and `import megatron.core` would die of it. On the CPU neither can be used, but
megatron-core would take their optimizers for having been imported.
"""

from __future__ import annotations

import importlib
import os
import sys
from importlib.util import find_spec

_MODULES = {
    "transformer_engine": ("transformer_engine.pytorch",),
    # The optimizers import without Apex's extensions and raise when they are made; PyPI's `apex`
    # is another project.
    "apex": ("apex.optimizers", "amp_C", "fused_layer_norm_cuda"),
}
_REMEDY = {
    "transformer_engine": "complete it with pip install --no-build-isolation "
    "'transformer-engine[pytorch]', or uninstall transformer-engine",
    "apex": "build it with its CUDA extensions, or uninstall apex",
}


def hide_unusable(cuda: bool) -> None:
    """Make the import of what cannot be used an ImportError. Call before megatron-core's import."""
    for package, needed in _MODULES.items():
        if package in sys.modules and sys.modules[package] is None:
            continue
        if not _is_installed(package):
            continue
        if not cuda:
            _hide(package)
        elif reason := _failure(needed):
            _hide(package)
            if os.environ.get("LOCAL_RANK", "0") == "0":
                print(
                    f"warning: {package} is installed but does not work ({reason}) and is not "
                    f"used; {_REMEDY[package]}",
                    file=sys.stderr,
                    flush=True,
                )


def _is_installed(package: str) -> bool:
    try:
        return package in sys.modules or find_spec(package) is not None
    except ValueError:  # a module without a spec
        return True


def _failure(modules: tuple[str, ...]) -> str:
    """Why one of them does not import, in one line; "" when all do."""
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:
            return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return ""


def _hide(package: str) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        del sys.modules[name]
    sys.modules[package] = None  # type: ignore[assignment]
