"""The site is built strictly: no dead link, no page left out, no docstring that cannot be read."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_site_is_built_strictly_and_asks_no_other_host(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=270,
    )
    assert done.returncode == 0, done.stderr
    pages = sorted(tmp_path.rglob("*.html"))
    assert len(pages) > 30
    loaded = re.compile(r"<(?:script|img|link)[^>]*(?:src|href)=\"?(https?:)?//[^\">]+")
    assert [page.name for page in pages if loaded.search(page.read_text(encoding="utf-8"))] == []
    api = (tmp_path / "api/objective.html").read_text(encoding="utf-8")
    assert "scope_megatron.objective.student_weights" in api and "eq. 4" in api


def test_pages_name_commands_and_settings_that_exist() -> None:
    """`scope-megatron NAME` of the pages, and configurations that they train or check."""
    from scope_megatron.cli import app

    known = {c.name or c.callback.__name__ for c in app.registered_commands if c.callback}
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = page.read_text(encoding="utf-8")
        named = set(re.findall(r"^(?:\.venv/bin/)?scope-megatron (\w+)", text, re.M))
        assert named <= known, page
        files = set(re.findall(r"\bconfigs/[\w/]+\.yaml", text))
        assert [name for name in files if not (ROOT / name).exists()] == [], page
