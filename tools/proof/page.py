"""The result of a proof as JSON and as Markdown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tools.proof.record import Reading, Result
from tools.proof.registry import ProofPart


def write_proof(
    out: Path, date: str, facts: dict[str, str], results: Sequence[Result], rehearse: bool
) -> tuple[Path, Path]:
    """``proof.json`` and ``proof.md`` in a folder."""
    data = {
        "date": date,
        "rehearsal": rehearse,
        "machine": facts,
        "wrong": any(result.wrong for result in results),
        "parts": [asdict(result) for result in results],
    }
    files = out / "proof.json", out / "proof.md"
    files[0].write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    files[1].write_text(markdown(date, facts, results, rehearse) + "\n", encoding="utf-8")
    return files


def markdown(date: str, facts: dict[str, str], results: Sequence[Result], rehearse: bool) -> str:
    """Machine, one row per part, then every check, target and figure."""
    what = "Rehearsal on a CPU at toy size (no figure of it says anything)" if rehearse else "Proof"
    lines = [
        f"{what}, {date}. " + ", ".join(f"{k} {v}" for k, v in facts.items()) + ".",
        "",
        summary(results),
        "",
        "| part | | value | limit | |",
        "|---|---|---|---|---|",
    ]
    for result in results:
        for entry in result.entries:
            cells = [result.part, entry.name, entry.shown, entry.limit, _word(entry)]
            lines.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    return "\n".join(lines)


def summary(results: Sequence[Result]) -> str:
    """A Markdown table, a row per part."""
    lines = ["| part | outcome | seconds | |", "|---|---|---|---|"]
    for result in results:
        words = [result.reason] if result.reason else []
        words += [f"missed: {e.name} {e.shown} ({e.limit})" for e in result.missed]
        cells = [result.part, result.outcome, f"{result.seconds:.0f}", "; ".join(words)]
        lines.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    return "\n".join(lines)


def listing(parts: Sequence[ProofPart]) -> str:
    """Every part: name, what it shows, what it needs."""
    lines = ["| part | shows | needs | GPUs | limit |", "|---|---|---|---|---|"]
    for part in parts:
        needs = ", ".join(("torch", *part.needs))
        limit = f"{part.limit_s / 60:.0f} min"
        lines.append(f"| {part.name} | {part.shows} | {needs} | {part.gpus} | {limit} |")
    return "\n".join(lines)


def _word(entry: Reading) -> str:
    if entry.ok is None:
        return ""
    good, bad = ("holds", "WRONG") if entry.kind == "check" else ("met", "missed")
    return good if entry.ok else bad
