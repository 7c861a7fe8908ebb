"""The contract checker on small made-up packages, and its tables against this project's source."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from launch.code import ROOT
from tools.check_contracts import own_files, own_uses
from tools.contracts import page, versions
from tools.contracts.declared import CONTRACTS, VLLM
from tools.contracts.guards import te_guard
from tools.contracts.judge import Ruling, judge
from tools.contracts.package import SourcePackage
from tools.contracts.uses import Use, collect

ENGINE = """
    from dataclasses import dataclass
    from .outputs import Output

    @dataclass
    class Arguments:
        model: str
        eager: bool = False

    class Base:
        def close(self): ...

    class Engine(Base):
        limit: int = 3

        def __init__(self, model: str, seed: int = 0, **kwargs):
            self.arguments: Arguments = Arguments(model, **kwargs)
            self.running = False

        def run(self, requests, *, progress: bool = True) -> "list[Output]": ...

        @staticmethod
        def name_of(group): ...

        @property
        def settings(self) -> Arguments: ...

    def start(model, *, port): ...
"""


@pytest.fixture
def package(tmp_path: Path) -> SourcePackage:
    """``pkg`` with a lazy ``Engine``, a re-export, a version guard and a guarded import."""
    files = {
        "pkg/__init__.py": """
            TABLE = {"Engine": ".engine:Engine"}
            def __getattr__(name): ...
            from pkg.engine import start
        """,
        "pkg/engine.py": ENGINE,
        "pkg/outputs.py": "class Output: ...",
        "pkg/old.py": """
            if is_te_min_version("2.0"):
                def move(a, b): ...
            else:
                def move(a, b, c): ...
        """,
    }
    for name, text in files.items():
        path = tmp_path / "sources" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    return SourcePackage(tmp_path / "sources", "pkg")


def verdicts(package: SourcePackage, source: str, **forwards: str) -> list[Ruling]:
    """Verdicts on every use of ``pkg`` in a source."""
    path = package.root.parent / "own.py"
    path.write_text(textwrap.dedent(source))
    return [
        judge(use, package, forwards) for use in collect([(path, "own")], ("pkg",), path.parent)
    ]


def reasons(package: SourcePackage, source: str, **forwards: str) -> list[str]:
    return [v.reason for v in verdicts(package, source, **forwards) if v.missing]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("from pkg import Motor", "no pkg.Motor"),
        ("import pkg.motor", "no pkg.motor"),
        ("NAMES = ('pkg.engine', 'pkg.motor')", "no pkg.motor"),
        ("from pkg import Engine\nEngine('m').halt()", "pkg.Engine has no halt"),
        ("from pkg import Engine\nEngine(seed=1)", "pkg.Engine: asks for model"),
        ("from pkg import Engine\nEngine('m', 1, 2)", "takes 2 positional arguments, 3 given"),
        ("from pkg import Engine\nEngine('m').run([], bar=1)", "run: no keyword bar"),
        ("from pkg import Engine\nEngine.name_of()", "name_of: asks for group"),
        ("from pkg import start\nstart('m')", "start: asks for port"),
        ("from pkg.engine import Arguments\nArguments('m', fast=1)", "Arguments: no keyword fast"),
        ("from pkg import Engine\nEngine('m').arguments.fast", "arguments has no fast"),
        ("from pkg import Engine\nEngine('m').settings.fast", "settings has no fast"),
        (
            "from pkg import Engine\ndef f(engine: Engine | None):\n    engine.halt()",
            "pkg.Engine has no halt",
        ),
        (
            "from pkg import Engine\nclass Own(Engine):\n    def f(self):\n        self.halt()",
            "pkg.Engine has no halt",
        ),
        (
            "from pkg import Engine\nclass Own(Engine):\n    def run(self):\n"
            "        super().run([], bar=1)",
            "run: no keyword bar",
        ),
        (
            "from pkg import Engine\nclass Own:\n    def __init__(self):\n"
            "        self.engine = Engine('m')\n    def f(self):\n        self.engine.halt()",
            "pkg.Engine has no halt",
        ),
        (
            "from pkg import Engine\ndef more():\n    return {'port': 1}\nEngine('m').run([], "
            "**more())",
            "run: no keyword port",
        ),
        ("from pkg import engine\nengine.Engine.halt = None", "pkg.engine.Engine has no halt"),
        ("from functools import partial\nfrom pkg import start\npartial(start, bar=1)", "bar"),
    ],
)
def test_what_is_missing_is_found(package: SourcePackage, source: str, reason: str) -> None:
    found = reasons(package, source)
    assert len(found) >= 1
    assert all(reason in text for text in found)


def test_what_is_there_is_not_reported(package: SourcePackage) -> None:
    source = """
        import pkg.engine
        from functools import partial
        from pkg import Engine, start
        from pkg.engine import Arguments
        MODULE = "pkg.outputs"
        engine = Engine("m", seed=1, eager=True)
        engine.run([1], progress=False)
        engine.close()
        engine.limit
        engine.running
        engine.settings.eager
        engine.note = 1
        engine.note
        Engine.name_of(3)
        partial(start, "m")
        start("m", port=1)
        Arguments("m", eager=True)
    """
    assert reasons(package, source) == []


def test_keywords_passed_on_are_looked_for_where_they_go(package: SourcePackage) -> None:
    source = "from pkg import Engine\nEngine('m', eager=True, fast=1)"
    open_call = [v for v in verdicts(package, source) if v.use.call is not None]
    assert [v.decided for v in open_call] == [False]  # **kwargs: it is said that nobody looked
    (reason,) = reasons(package, source, **{"pkg.Engine": "pkg.engine.Arguments"})
    assert reason == "pkg.Engine: no keyword fast (nor in pkg.engine.Arguments)"


@pytest.mark.parametrize(("version", "missing"), [("2.1", 1), ("1.9", 0)])
def test_branches_for_other_versions_are_passed_over(
    package: SourcePackage, version: str, missing: int
) -> None:
    guarded = SourcePackage(package.root, "pkg", te_guard(version))
    use = "from pkg.old import move\nmove(1, 2, 3)"
    assert len(reasons(guarded, use)) == missing
    guard = te_guard(version)
    path = package.root / "consumer.py"
    path.write_text('if is_te_min_version("2.0"):\n    import pkg.motor\n')
    assert len(collect([(path, "consumer")], ("pkg",), package.root, guard)) == missing


def test_absent_but_asked_for_is_a_fallback(package: SourcePackage) -> None:
    source = """
        import pkg.engine
        try:
            from pkg import Motor
        except ImportError:
            Motor = None
        if hasattr(pkg.engine, "patched"):
            pkg.engine.patched = 1
    """
    found = [v for v in verdicts(package, source) if v.missing]
    row = page.Checked("pkg", ">=1", "1.0", found)
    assert len(found) >= 2
    assert row.failures == []
    assert len(row.fallbacks) == len(found)


def test_the_declared_tables_name_what_the_source_uses() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path, _ in own_files())
    declared = {name for c in CONTRACTS for use in c.uses() for name in use.path}
    declared |= {word for c in CONTRACTS for _, word in c.words()}
    assert declared
    assert sorted(name for name in declared if name not in text) == []


@pytest.mark.slow
def test_the_engine_is_seen_in_this_projects_source() -> None:
    calls = {str(use.target): use.call for use in own_uses(VLLM.roots) if use.call is not None}
    engine = calls["vllm.LLM"]
    assert engine is not None
    assert {"skip_tokenizer_init", "enable_sleep_mode", "logprobs_mode"} <= set(engine.keywords)


def test_ranges_and_their_ends() -> None:
    setup = ROOT / "setup.py"
    for contract in CONTRACTS:
        assert versions.requirement(setup, contract.distribution).specifier
    known = [Version(text) for text in ("0.25.1", "0.26.0", "0.30.0", "0.32.0", "0.33.0")]
    wanted = Requirement("vllm>=0.26,<0.33")
    assert versions.extremes(known, wanted) == [Version("0.26.0"), Version("0.32.0")]
    assert versions.extremes(known[:2], wanted) == [Version("0.26.0")]
    with pytest.raises(ValueError, match="no released version satisfies"):
        versions.extremes(known[:1], wanted)


def test_the_section_is_put_into_a_page_and_replaced(tmp_path: Path) -> None:
    target = tmp_path / "gpu.md"
    target.write_text("# On a GPU\n\nA.\n")
    missing = Ruling(Use("pkg.Motor"), "no pkg.Motor")
    first = [page.Checked("pkg", ">=1", "1.0", [missing])]
    page.write(target, page.section(first, "2026-01-01"))
    assert "| pkg | `>=1` | 1.0 | 1 | no pkg.Motor | 0 | 0 |" in target.read_text()
    target.write_text(target.read_text() + "\n## Later\n\nB.\n")
    second = [page.Checked("pkg", ">=1", "1.1", [])]
    page.write(target, page.section(second, "2026-01-02"))
    text = target.read_text()
    assert "1.0 |" not in text
    assert "| pkg | `>=1` | 1.1 | 0 | none | 0 | 0 |" in text
    assert text.startswith("# On a GPU\n\nA.\n") and text.endswith("## Later\n\nB.\n")
