"""The process in which parts run: python -m tools.proof.child --out DIR NAME=MODULE:FUNCTION ...

Leaves ``NAME.json`` in DIR for every part that came to an end; a part after one that raised does
not run when it asks for what that one had built.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tools.proof.record import Proof, Result


def run_part(name: str, place: str, rehearse: bool, folder: Path, shared: dict[str, Any]) -> Result:
    """One part, whatever it does."""
    proof = Proof(rehearse, folder / name, shared)
    proof.folder.mkdir(parents=True, exist_ok=True)
    module, _, function = place.partition(":")
    start = time.perf_counter()
    outcome, reason = "passed", ""
    try:
        getattr(importlib.import_module(module), function)(proof)
    except Exception as error:
        traceback.print_exc()
        outcome = "crashed"
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    if outcome == "passed" and proof.failures:
        outcome = "failed"
        reason = "; ".join(f"{e.name}: {e.shown}, {e.limit}" for e in proof.failures)
    return Result(name, outcome, time.perf_counter() - start, proof.entries, reason)  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="+", metavar="NAME=MODULE:FUNCTION")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rehearse", action="store_true")
    options = parser.parse_args()
    shared: dict[str, Any] = {}
    for spec in options.parts:
        name, _, place = spec.partition("=")
        print(f"part {name}", flush=True)
        result = run_part(name, place, options.rehearse, options.out, shared)
        partial = options.out / f"{name}.partial"
        partial.write_text(json.dumps(asdict(result)), encoding="utf-8")
        partial.rename(options.out / f"{name}.json")
        print(f"part {name}: {result.outcome} {result.reason}", flush=True)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # what is written is written: no teardown of an engine or of NCCL may hang


if __name__ == "__main__":
    main()
