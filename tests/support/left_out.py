"""What the test runs of one command skipped, said in one line at its end.

Each run appends its reasons to the file that ``SCOPE_MEGATRON_LEFT_OUT`` names (tests/conftest.py);
``python -m tests.support.left_out FILE`` prints the line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

FILE = "SCOPE_MEGATRON_LEFT_OUT"
DEPS = Path(__file__).resolve().parents[2] / "tools" / "system_deps.sh"
INSTALLED = "apt-get install"  # in every reason of a test whose program apt can bring


def note(skipped: Iterable[pytest.TestReport]) -> None:
    """Append the reasons of these reports to the file, if there is one."""
    if FILE not in os.environ:
        return
    with Path(os.environ[FILE]).open("a") as file:
        for report in skipped:
            file.write(json.dumps(str(report.longrepr[2] if report.longrepr else "")) + "\n")


def line(reasons: Iterable[str], missing: list[str]) -> str:
    """The sentence for these reasons, where ``missing`` are the packages that are not installed."""
    counts = Counter(reason.removeprefix("Skipped: ") for reason in reasons)
    for_apt = sum(count for reason, count in counts.items() if INSTALLED in reason)
    others = {r: n for r, n in counts.items() if not (INSTALLED in r and missing)}
    told = []
    if for_apt and missing:
        told.append(f"{for_apt} tests for lack of {', '.join(missing)}: `make system-deps`")
    told += [f"{count} ({reason})" for reason, count in sorted(others.items())]
    return f"left out: {'; '.join(told)}" if told else "left out: nothing"


def main(path: Path) -> None:
    reasons = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    asked = subprocess.run(["bash", DEPS, "--missing"], capture_output=True, text=True, check=True)
    print(line(reasons, asked.stdout.split()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
