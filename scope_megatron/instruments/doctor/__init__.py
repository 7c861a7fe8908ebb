"""`scope-megatron doctor`: what of this machine works, what is missing and how to get it.

packages    installed versions, imports in a process of their own
machine     GPUs, memory, limits, collectives
cluster     Slurm and what it offers
probe       an all-reduce among processes of this machine
finding     one line of the table: ok, note, warning or error, and how to mend it

Nothing is imported here that could be broken: packages are tried in processes of their own, so
that one which crashes or hangs is a line of the table and not the end of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

from scope_megatron.instruments.doctor.cluster import check_cluster
from scope_megatron.instruments.doctor.finding import Finding, Level
from scope_megatron.instruments.doctor.machine import check_machine
from scope_megatron.instruments.doctor.packages import check_packages

__all__ = ["SECTIONS", "Finding", "Level", "examine", "report_findings"]

SECTIONS: dict[str, Callable[[], Iterator[Finding]]] = {
    "packages": check_packages,
    "machine": check_machine,
    "Slurm": check_cluster,
}
_STYLE = {Level.OK: "green", Level.NOTE: "cyan", Level.WARNING: "yellow", Level.ERROR: "red"}


def examine() -> Iterator[tuple[str, Finding]]:
    """(section, finding) of every check, as they become known."""
    for section, check in SECTIONS.items():
        for finding in check():
            yield section, finding


def report_findings(as_json: bool = False) -> int:
    """Print every finding; returns 1 if there is an error among them, else 0."""
    if as_json:
        found = [(section, finding) for section, finding in examine()]
        print(json.dumps([{"section": section, **vars(item)} for section, item in found], indent=2))
    else:
        found = list(_print_as_found())
    return int(any(finding.level is Level.ERROR for _, finding in found))


def _print_as_found() -> Iterator[tuple[str, Finding]]:
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False, soft_wrap=True)
    before, counts = "", dict.fromkeys(Level, 0)
    for section, finding in examine():
        if section != before:
            console.print(f"\n[bold]{section}[/bold]")
            before = section
        style = _STYLE[finding.level]
        mark = f"[{style}]{finding.level.value:<7}[/{style}]"
        console.print(f"  {mark}  {escape(finding.name):<22} {escape(finding.detail)}")
        if finding.fix:
            console.print(f"  {'':<7}  {'':<22} -> {escape(finding.fix)}")
        counts[finding.level] += 1
        yield section, finding
    console.print(
        f"\n{counts[Level.ERROR]} errors, {counts[Level.WARNING]} warnings; "
        + ("not ready" if counts[Level.ERROR] else "ready to train")
    )
