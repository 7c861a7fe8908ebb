"""The table of checked versions, for a terminal and for docs/gpu.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.contracts.judge import Ruling

BEGIN = "<!-- versions: written by tools/check_contracts.py -->"
END = "<!-- versions: end -->"
TITLE = "## Supported versions"


@dataclass(frozen=True)
class Checked:
    """One version of a distribution and the verdicts on every use of it."""

    distribution: str
    allowed: str  # setup.py's range
    version: str
    verdicts: Sequence[Ruling]

    @property
    def failures(self) -> list[Ruling]:
        return [v for v in self.verdicts if v.missing and not v.use.optional]

    @property
    def fallbacks(self) -> list[Ruling]:
        return [v for v in self.verdicts if v.missing and v.use.optional]

    @property
    def undecided(self) -> list[Ruling]:
        return [v for v in self.verdicts if not v.decided]

    @property
    def names(self) -> int:
        """How many different uses were looked up."""
        return len({str(v.use) for v in self.verdicts})


def versions_table(checked: Sequence[Checked]) -> str:
    """A Markdown table, a row per version."""
    lines = [
        "| package | setup.py | version | uses checked | missing | optional, absent | undecided |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in checked:
        failures = "; ".join(dict.fromkeys(v.reason for v in row.failures)) or "none"
        cells = [
            row.distribution,
            f"`{row.allowed}`",
            row.version,
            str(row.names),
            failures,
            str(len({str(v.use) for v in row.fallbacks})),
            str(len({str(v.use) for v in row.undecided})),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def section(checked: Sequence[Checked], date: str) -> str:
    """The section of docs/gpu.md."""
    return f"""{TITLE}

{BEGIN}
Checked on {date} by `python -m tools.check_contracts`, which reads the released wheels of the
lowest and the highest version that `setup.py` allows, without installing them, and looks for every
class, function, keyword and attribute that this project uses. That a name is there says nothing of
what it does: the tests on a GPU say that.

{versions_table(checked)}

*Optional, absent*: names that the program, or megatron-core, asks for first and does without.
*Undecided*: what sources alone do not show (attributes made at run time).
Transformer Engine is used through megatron-core alone: checked are what megatron-core imports of
it and the layers, the optimizer and the norms that this project builds with it.
{END}
"""


def write(page: Path, text: str) -> None:
    """Put the section into a page, in the place of the old one or at the end."""
    before = page.read_text(encoding="utf-8") if page.is_file() else "# On a GPU\n"
    start = before.find(f"{TITLE}\n\n{BEGIN}")
    if start < 0:
        page.write_text(f"{before.rstrip()}\n\n{text}", encoding="utf-8")
        return
    stop = before.index(END, start) + len(END) + 1
    page.write_text(before[:start] + text + before[stop:], encoding="utf-8")
