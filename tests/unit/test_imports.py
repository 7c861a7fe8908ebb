"""Imports go one way through the package, and the command line starts without torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "scope_megatron"
# machine, exits, disk, outputs, family, algorithm, hub <- config, types, trace <- parallel, logging
# <- model, checkpoint, job <- convert <- engine, data <- rollout <- learn, remote <- train;
# objective <- learn, train; plan, report, view, doctor, evaluation <- commands are instruments:
# they import the trainer, and nothing of it imports them <- cli
RANK = {
    "machine": 0,
    "family": 0,
    "algorithm": 0,
    "hub": 0,
    "exits": 0,
    "disk": 0,
    "outputs": 0,
    "config": 1,
    "types": 1,
    "trace": 1,
    "parallel": 2,
    "logging": 3,
    "model": 3,
    "checkpoint": 3,
    "job": 3,
    "convert": 4,
    "engine": 5,
    "data": 5,
    "rollout": 6,
    "remote": 7,
    "learn": 7,
    "train": 8,
    "instruments": 8,
    "instruments.plan": 9,
    "instruments.report": 9,
    "instruments.doctor": 9,
    "instruments.evaluation": 10,
    "instruments.view": 10,
    "instruments.commands": 11,
    "cli": 12,
    "__main__": 13,
}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room(parts: Sequence[str]) -> str:
    """`train` for train/trainer.py, `instruments.plan` for what is in there, `cli` for cli.py,
    `__init__` for the package itself."""
    names = [part.removesuffix(".py") for part in parts[:2]]
    return ".".join(names) if names[0] == "instruments" and len(parts) > 2 else names[0]


def imported(source: str) -> Iterator[str]:
    """Every module name that a source imports anywhere, `from p import m` as `p.m`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def wrong_imports(importer: str, source: str) -> list[str]:
    """Imports that go against the one direction."""
    wrong = []
    for name in imported(source):
        top, _, rest = name.partition(".")
        target = room(rest.split("."))
        if top in ("launch", "tools", "tests", "nemo_run"):
            wrong.append(name)
        elif importer == "objective":
            own = top == "scope_megatron" and target in ("types", "objective")
            if not own and top not in ("torch", "triton") and top not in sys.stdlib_module_names:
                wrong.append(name)
        elif top != "scope_megatron" or target == importer or importer == "__init__":
            continue
        elif target == "objective":
            if importer not in ("learn", "train"):
                wrong.append(name)
        elif RANK.get(target, 99) >= RANK[importer]:
            wrong.append(name)
    return wrong


@pytest.mark.parametrize("module", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(module: Path) -> None:
    assert (
        wrong_imports(room(module.relative_to(PACKAGE).parts), module.read_text(encoding="utf-8"))
        == []
    )


@pytest.mark.parametrize(
    ("importer", "source"),
    [
        ("parallel", "from scope_megatron.train.trainer import train"),
        ("parallel", "def f():\n    import scope_megatron.convert.hf"),
        ("config", "from scope_megatron.types import Prompt"),
        ("family", "from scope_megatron.config.errors import shown"),
        ("rollout", "from scope_megatron.objective.head.logits import token_loss"),
        ("objective", "from scope_megatron.parallel import platform"),
        ("objective", "import megatron.core"),
        ("train", "from launch.executors import local"),
        ("train", "from scope_megatron import cli"),
        ("train", "from scope_megatron.instruments.report.figure import write_report"),
        ("instruments.plan", "from scope_megatron.instruments.commands.view import view"),
    ],
)
def test_the_rule_sees_a_wrong_import(importer: str, source: str) -> None:
    assert len(wrong_imports(importer, source)) == 1


@pytest.mark.parametrize(
    "name", ["scope_megatron.cli", "scope_megatron.types", "scope_megatron.family.shape"]
)
def test_starts_without_heavy_imports(name: str) -> None:
    code = (
        f"import sys, {name}; heavy = {{'torch', 'transformers', 'vllm', 'megatron', 'numpy'}}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "[]", done.stderr
