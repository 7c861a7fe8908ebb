"""The table of layouts at the end of a run of these tests."""

from __future__ import annotations

import pytest

from tests.support import layout_table


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if rows := layout_table.lines():
        terminalreporter.section("layouts")
        for row in rows:
            terminalreporter.write_line(row)
