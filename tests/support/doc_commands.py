"""The commands that README, CONTRIBUTING and docs/ tell a reader to type, and whether they parse.

A command in a fenced block is typed as it stands; one in a sentence may lack arguments. What a
program would do is not done: its own parser reads the words, its own schema the settings, and files
of this repository that are named must be there.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ("make", "scope-megatron", "python", "pytest", "torchrun")
# of which nothing here knows the options
FOREIGN = ("pip", "apt-get", "ssh", "rsync", "git")
SHELLS = ("bash", "sh", "shell", "console")
OURS = ("configs", "assets", "tools", "benchmarks", "tests", "launch", "scope_megatron", "docs")
# words that stand for the reader's own
PLACEHOLDERS = {
    "N": "8",
    "NAME": "h100",
    "JOB": "17",
    "CONFIG": "configs/quickstart.yaml",
    "CONFIG.yaml": "configs/quickstart.yaml",
    "FILE": "configs/quickstart.yaml",
    "my_run.yaml": "configs/quickstart.yaml",
    "...": "configs/quickstart.yaml",
    "[KEY=VALUE]...": "objective.tau=2.0",
}
MACHINES = ((None, 1), (8, 1), (8, 8))  # GPUs of a node and nodes; None: this machine


@dataclass(frozen=True)
class DocCommand:
    """A command as it stands on a page."""

    page: str
    line: int
    text: str
    whole: bool  # in a fenced block

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text, comments=True)

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands() -> list[DocCommand]:
    """Of all pages, in their order."""
    found = []
    for page in pages():
        name = str(page.relative_to(ROOT))
        found += list(_of_page(name, page.read_text(encoding="utf-8")))
    return found


def _of_page(page: str, text: str) -> Iterator[DocCommand]:
    language: str | None = None
    held, start = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        if fence := re.match(r"\s*```(\w*)", line):
            language = fence[1] or "text" if language is None else None
        elif language in SHELLS:
            start = start if held else number
            held += line.removesuffix("\\")
            if not line.endswith("\\"):
                if held.strip() and not held.strip().startswith("#"):
                    yield DocCommand(page, start, held.strip(), True)
                held = ""
        elif language is None:
            for inline in re.findall(r"`([^`]+)`", line):
                first = inline.split()[0] if inline.split() else ""
                if _program(first) in PROGRAMS and " " in inline:
                    yield DocCommand(page, number, inline, False)


def _program(word: str) -> str:
    return word.removeprefix(".venv/bin/")


def problems(command: DocCommand) -> list[str]:
    """What is wrong with a command, a line each; empty: it parses."""
    words = [_meant(word) for word in command.words]
    program, *arguments = words
    program = _program(program)
    if program in FOREIGN:
        return []
    readers: dict[str, Callable[[list[str]], list[str]]] = {
        "make": _make,
        "scope-megatron": _scope_megatron,
        "python": _python,
        "pytest": _pytest,
        "torchrun": _torchrun,
    }
    if program not in readers:
        return [f"{program} is no program that these pages should name"]
    found = [*_missing_files(arguments), *readers[program](arguments)]
    return [one for one in found if command.whole or not _lacks(one)]


def _meant(word: str) -> str:
    """A word with what stands for the reader's own replaced; brackets mark what may be left out."""
    kept = word.endswith("...") or "=" in word
    return PLACEHOLDERS.get(word, word if kept else word.strip("[]"))


def _lacks(problem: str) -> bool:
    """Whether arguments are missing, which a sentence may leave out."""
    return "required" in problem or "Missing" in problem or "NoArgsIsHelp" in problem


def _missing_files(arguments: Sequence[str]) -> list[str]:
    """Files of this repository that are not there."""
    named = [word.partition("::")[0].rpartition("=")[2] for word in arguments]
    return [
        f"{name} does not exist"
        for name in named
        if "/" in name and name.split("/")[0] in OURS and not (ROOT / name).exists()
    ]


def _make(arguments: list[str]) -> list[str]:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^([a-z-]+):", makefile, re.M)
    variables = re.findall(r"^([A-Z]+) *\?=", makefile, re.M)
    found = []
    for word in arguments:
        name, is_variable, value = word.partition("=")
        if is_variable and name not in variables:
            found.append(f"make has no variable {name}")
        elif not is_variable and word not in targets:
            found.append(f"make has no target {word}")
        elif name == "ARGS" and "gpu-proof" in arguments:
            found += _python(["-m", "tools.gpu_proof", *shlex.split(value)])
        elif name == "ARGS" and "quickstart" in arguments:
            found += _scope_megatron(["train", "configs/quickstart.yaml", *shlex.split(value)])
    return found


def _scope_megatron(arguments: list[str]) -> list[str]:
    from scope_megatron.cli import app

    if not arguments:
        return []
    name, *rest = arguments
    return _typer(app, [name, *rest]) or _settings(name, rest)


def _typer(app: Any, arguments: Sequence[str]) -> list[str]:
    """What click says of the arguments of a typer application, which is not run."""
    import typer

    refused = next(one for one in typer.BadParameter.__mro__ if one.__name__ == "ClickException")
    command: Any = typer.main.get_command(app)
    context, rest = command.context_class(command, info_name="program"), list(arguments)
    try:
        while rest and hasattr(command, "resolve_command"):
            _, command, rest = command.resolve_command(context, rest)
        command.make_context("program", rest, parent=context)
    except typer.Exit:  # --help
        return []
    except refused as error:
        return [f"{type(error).__name__}: {getattr(error, 'message', '') or error}"]
    return []


def _settings(name: str, arguments: Sequence[str]) -> list[str]:
    """What the schema says of KEY=VALUE behind a configuration, on a machine that would take it."""
    from scope_megatron.config import ConfigError, load_config, validating_for

    files = [word for word in arguments if word.endswith(".yaml") and "=" not in word]
    overrides = [word for word in arguments if re.match(r"[a-z][\w.]*=", word)]
    if name not in ("train", "check", "plan", "data", "evaluate") or not files:
        return []
    found: list[str] = []
    for gpus, nodes in MACHINES:
        with contextlib.ExitStack() as stack:
            if gpus is not None:
                stack.enter_context(validating_for(gpus, nodes))
            try:
                load_config(ROOT / files[0], overrides, check_files=False)
                return []
            except ConfigError as error:
                found = found or list(error.problems)
    return found


def _python(arguments: list[str]) -> list[str]:
    """``-m MODULE`` or a file, by the module's own parser."""
    if arguments[:1] == ["-m"]:
        name, rest = arguments[1], arguments[2:]
    elif arguments and arguments[0].endswith(".py"):
        name, rest = arguments[0].removesuffix(".py").replace("/", "."), arguments[1:]
    else:
        return [f"python {' '.join(arguments)} names neither a module nor a file"]
    if name == "scope_megatron":
        return _scope_megatron(rest)
    path = ROOT / name.replace(".", "/")
    if not (path.with_suffix(".py").exists() or (path / "__main__.py").exists()):
        return [f"there is no module {name}"]
    if name == "launch.nemo":  # nemo-run's own syntax: tests/unit/test_launch.py
        return []
    package = not path.with_suffix(".py").exists()
    module = importlib.import_module(f"{name}.__main__" if package else name)
    source = Path(module.__file__ or "").read_text()
    if "typer.run(main)" in source:
        import typer

        app = typer.Typer()
        app.command()(module.main)
        return _typer(app, rest)
    if "typer.Typer(" in source:
        return _typer(module.app, rest)
    if name == "launch.run":
        swept = [re.sub(r"^([\w.]+=[^,]*),.*", r"\1", word) for word in rest]  # --sweep KEY=A,B
        return _argparse(lambda: module.main(rest), rest) or _settings("train", swept)
    if "argparse" in source:
        return _argparse(lambda: module.main(), rest)
    return []


class _Parsed(BaseException):
    """The arguments were taken: nothing more is to happen."""


def _argparse(main: Callable[[], Any], arguments: Sequence[str]) -> list[str]:
    """What argparse says of ``arguments`` in a program, which ends there."""
    kind, said = argparse.ArgumentParser, io.StringIO()

    def stopping(original: Callable[..., Any]) -> Callable[..., Any]:
        def parse(*args: Any, **kwargs: Any) -> Any:
            original(*args, **kwargs)
            raise _Parsed

        return parse

    with contextlib.ExitStack() as stack:
        for name in ("parse_args", "parse_intermixed_args"):
            stack.enter_context(mock.patch.object(kind, name, stopping(getattr(kind, name))))
        stack.enter_context(mock.patch.object(sys, "argv", ["program", *arguments]))
        stack.enter_context(contextlib.redirect_stderr(said))
        stack.enter_context(contextlib.redirect_stdout(said))
        try:
            main()
        except _Parsed:
            return []
        except SystemExit:
            return [said.getvalue().strip().splitlines()[-1]]
    return ["its arguments were never parsed"]


def _pytest(arguments: list[str]) -> list[str]:
    """Files are looked at with the others'; marks must be known."""
    known = re.findall(r'^    "(\w+):', (ROOT / "pyproject.toml").read_text(), re.M)
    marks = [after for word, after in pairwise(arguments) if word == "-m"]
    words = {word for mark in marks for word in re.findall(r"\w+", mark)} - {"not", "and", "or"}
    return [f"there is no mark {word}" for word in sorted(words - set(known))]


def _torchrun(arguments: list[str]) -> list[str]:
    from torch.distributed.run import get_args_parser

    parser = get_args_parser()
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            found = parser.parse_args(arguments)
    except SystemExit:
        return [said.getvalue().strip().splitlines()[-1]]
    module = ["-m", found.training_script] if found.module else [found.training_script]
    return _python([*module, *found.training_script_args])
