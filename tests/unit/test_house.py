"""The house's own rules: small rooms, small files, small functions, one name for one thing."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.test_imports import imported

ROOT = Path(__file__).parents[2]
PRODUCT = ("scope_megatron", "launch", "tools")
MOST_FILES, MOST_LINES, MOST_FUNCTION_LINES = 14, 400, 60
# Programs: their functions are named after the command that the user types. A site's file answers
# with functions of its own to the names that launch/executors.py asks for.
COMMANDS = (
    "scope_megatron/cli.py",
    "scope_megatron/instruments/commands/evaluation.py",
    "scope_megatron/instruments/commands/planning.py",
    "scope_megatron/instruments/commands/view.py",
    "tools/prepare_data.py",
    "launch/sites/example.py",
)


def sources(*places: str) -> list[Path]:
    return sorted(path for place in places for path in (ROOT / place).rglob("*.py"))


def rooms(*places: str) -> list[Path]:
    return sorted({path.parent for path in sources(*places)})


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def long_functions(source: str) -> list[str]:
    return [
        node.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > MOST_FUNCTION_LINES
    ]


def public_names(source: str, used: set[str]) -> Iterator[str]:
    """Classes and functions of a module, and those of its constants that others have ``used``.

    Not a program's ``main``.
    """
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found = {node.name}
        elif isinstance(node, ast.Assign):
            found = {target.id for target in node.targets if isinstance(target, ast.Name)} & used
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found = {node.target.id} & used
        else:
            continue
        yield from (name for name in found if not name.startswith("_") and name != "main")


def doubled(modules: dict[str, str]) -> dict[str, list[str]]:
    """Public names that several of the modules (path -> source) define."""
    used = {name.rpartition(".")[2] for source in modules.values() for name in imported(source)}
    found: dict[str, list[str]] = defaultdict(list)
    for path, source in modules.items():
        for name in set(public_names(source, used)):
            found[name].append(path)
    return {name: paths for name, paths in found.items() if len(paths) > 1}


@pytest.mark.parametrize("room", rooms(*PRODUCT), ids=named)
def test_room_is_small_and_says_what_is_in_it(room: Path) -> None:
    files = [path.stem for path in room.glob("*.py") if path.stem != "__init__"]
    assert len(files) <= MOST_FILES
    if len(files) < 2:
        return
    doc = ast.get_docstring(ast.parse((room / "__init__.py").read_text())) or ""
    listed = {line.split()[0].removesuffix(".py") for line in doc.splitlines() if line.strip()}
    assert sorted(set(files) - listed - {"__main__"}) == [], "the docstring lists every file"


@pytest.mark.parametrize("room", rooms("tests", "benchmarks"), ids=named)
def test_folder_of_tests_says_what_it_is_for(room: Path) -> None:
    if len(list(room.glob("*.py"))) > 2:
        assert ast.get_docstring(ast.parse((room / "__init__.py").read_text()))


@pytest.mark.parametrize("path", sources(*PRODUCT, "tests", "benchmarks"), ids=named)
def test_files_and_functions_are_short(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert source.count("\n") <= MOST_LINES
    assert long_functions(source) == []


def test_no_two_public_things_share_a_name() -> None:
    modules = {named(path): path.read_text(encoding="utf-8") for path in sources(*PRODUCT)}
    assert doubled({path: text for path, text in modules.items() if path not in COMMANDS}) == {}


def test_tests_and_benchmarks_do_not_import_each_other() -> None:
    """A benchmark's own test, test_bench_NAME, may; all may use tests.support."""
    wrong = [
        f"{named(path)}: {name}"
        for path in sources("tests", "benchmarks")
        for name in imported(path.read_text(encoding="utf-8"))
        if name.split(".")[0] in ("tests", "benchmarks") and not name.startswith("tests.support")
        if name.split(".")[0] != named(path).split("/")[0]
        if not path.name.startswith("test_bench_")
    ]
    assert wrong == []


def test_guides_name_files_that_exist() -> None:
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    found = re.findall(r"\btests/[\w/]+(?:\.\w+)?", guide)
    tour = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    found += [f"scope_megatron/{path}" for path in re.findall(r"`([a-z_/]+(?:\.py|/))`", tour)]
    assert len(found) > 80
    missing = [name for name in found if not (ROOT / name).exists()]
    assert missing == ["scope_megatron/launch/", "scope_megatron/tools/"], "those stand beside it"


def test_tour_names_every_room() -> None:
    tour = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    package = ROOT / "scope_megatron"
    rooms_of_it = [
        str(path.parent.relative_to(package))
        for pattern in ("*/__init__.py", "instruments/*/__init__.py")
        for path in package.glob(pattern)
    ]
    assert [name for name in rooms_of_it if f"| `{name}/` |" not in tour] == []


def test_the_rules_see_what_is_wrong() -> None:
    body = "\n".join(f"    x = {i}" for i in range(MOST_FUNCTION_LINES))
    assert long_functions(f"class A:\n  def f():\n{body}\n") == ["f"]
    assert long_functions(f"def f():\n{body.replace('    x = 0' + chr(10), '')}\n") == []
    modules = {
        "a.py": "class Job: ...\n_P = 1\nX = 1\nY = 1",
        "b.py": "from a import Y\ndef Job(): ...\n_P = 2\nX = 2",
        "c.py": "Y: int = 1",
    }
    assert doubled(modules) == {"Job": ["a.py", "b.py"], "Y": ["a.py", "c.py"]}
