"""The page in a real browser: Debian's Chromium, driven by Playwright; the server beside it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
START_S = 60.0


def chromium() -> str | None:
    """The browser's program, None where there is none."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


@contextmanager
def served(*runs: Path, options: tuple[str, ...] = ()) -> Iterator[str]:
    """`scope-megatron view` on any free port, while the block runs; gives the address."""
    command = [sys.executable, "-m", "scope_megatron", "view", *map(str, runs), "--port", "0"]
    process = subprocess.Popen(
        [*command, *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://\S+", line)
        assert found, line + process.stdout.read()
        yield found[0]
    finally:
        process.terminate()
        process.wait(timeout=20)


@contextmanager
def browser() -> Iterator[Any]:
    """A Playwright browser; pages are opened with :func:`opened`."""
    from playwright.sync_api import sync_playwright

    program = chromium()
    assert program is not None, "apt-get install chromium"
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-gpu"]
        )
        yield started
        started.close()


def opened(started: Any, address: str, said: list[str]) -> Any:
    """A page at ``address`` once its curves are drawn; ``said`` gathers what goes wrong on it."""
    page = started.new_page(viewport={"width": 1360, "height": 860})
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: (said.append("dialog"), dialog.dismiss()))
    page.goto(address)
    page.wait_for_selector("body[data-drawn]")
    return page
