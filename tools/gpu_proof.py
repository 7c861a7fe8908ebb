"""Everything that only a GPU can show, one part after the other, each in a process of its own.

    python -m tools.gpu_proof                  # or: make gpu-proof
    python -m tools.gpu_proof --list           # the parts, what they show and need
    python -m tools.gpu_proof --only kernels --only scorer
    python -m tools.gpu_proof --rehearse       # every part's code on this CPU, at toy size

Writes proof.json and proof.md. Parts whose packages or GPUs are not there are named and left out.
Ends with 1 when anything is wrong, with 2 when no part could run; a target that is missed (a speed)
is told and is not wrong.
"""

from __future__ import annotations

import datetime
import sys
from pathlib import Path
from typing import Annotated

import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a script, too

from tools.proof import machine, page, runner
from tools.proof.registry import PARTS, ProofPart


def parts_named(only: list[str] | None) -> list[ProofPart]:
    """The parts of these names, in the order of the registry. Raises ValueError."""
    known = [part.name for part in PARTS]
    if unknown := sorted(set(only or []) - set(known)):
        raise ValueError(f"--only: no part {', '.join(unknown)}; there are {', '.join(known)}")
    return [part for part in PARTS if not only or part.name in only]


def main(
    only: Annotated[list[str] | None, typer.Option(help="a part to run; may be repeated")] = None,
    listed: Annotated[bool, typer.Option("--list", help="list the parts and end")] = False,
    rehearse: Annotated[bool, typer.Option(help="at toy size on the CPU")] = False,
    out: Annotated[Path, typer.Option(help="folder for results and logs")] = Path("runs/gpu-proof"),
) -> None:
    """Run the proof."""
    try:
        parts = parts_named(only)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    if listed:
        print(page.listing(parts))
        return
    if not rehearse and not machine.gpus():
        print("error: no GPU that torch can use; --rehearse runs at toy size", file=sys.stderr)
        raise SystemExit(2)
    out = out / "rehearsal" if rehearse and out == Path("runs/gpu-proof") else out
    results = runner.run_parts(parts, out.resolve(), rehearse=rehearse)
    facts = machine.machine_facts(rehearse)
    data, text = page.write_proof(out, str(datetime.date.today()), facts, results, rehearse)
    print(f"\n{text.read_text(encoding='utf-8')}\n{data}\n{text}")
    if all(result.outcome == "left out" for result in results):
        print("error: no part could run", file=sys.stderr)
        raise SystemExit(2)
    raise SystemExit(1 if any(result.wrong for result in results) else 0)


if __name__ == "__main__":
    typer.run(main)
