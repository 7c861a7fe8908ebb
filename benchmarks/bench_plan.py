"""The planner against measured tensor memory, and against published rows.

    python benchmarks/bench_plan.py [--published] [--tables] [--only NAME] [--json]

Without options every layout of tests/support/plan_layouts.py is run on gloo ranks of this machine's
CPU, and the error of every tenant is printed (positive: the plan says more). --published prints the
rows that others measured on GPUs instead, each with its source, --tables those of docs/planning.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a script's own folder is not enough

from benchmarks.plan_published import published_rows
from benchmarks.plan_tables import tables
from tests.support.harness import run_distributed_test
from tests.support.plan_layouts import CASES, Measured, errors, make_models, measure, planned

MIB = 2**20
TENANTS = ("student", "gradients", "optimizer", "teacher", "states", "activations", "scoring")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--published", action="store_true", help="compare with published rows")
    parser.add_argument("--tables", action="store_true", help="print the documentation's tables")
    parser.add_argument("--only", help="layouts whose name contains this")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    if arguments.published:
        print("\n".join(published_rows()))
        return 0
    if arguments.tables:
        print("\n".join(tables()))
        return 0
    with tempfile.TemporaryDirectory(prefix="bench-plan-") as name:
        root = Path(name)
        make_models(root)
        return measure_all(root, arguments.only or "", arguments.json)


def measure_all(root: Path, only: str, as_json: bool) -> int:
    """Print a row per layout; 1 if any tenant is further off than 5%."""
    worst = 0.0
    told = {}
    if not as_json:
        print("| layout | ranks | " + " | ".join(TENANTS) + " | activations MiB |")
        print("|" + "---|" * (len(TENANTS) + 3))
    for case in CASES:
        if only not in case.name:
            continue
        got: list[Measured] = run_distributed_test(measure, case.world, root, case, timeout=900)
        found = errors(got, planned(root, case))
        worst = max(worst, *(abs(error) for error in found.values()))
        told[case.name] = {"measured": [asdict(m) for m in got], "errors": found}
        if not as_json:
            cells = [f"{found[t]:+.1%}" if t in found else "" for t in TENANTS]
            peak = max(m.activations for m in got) / MIB
            print(f"| {case.name} | {case.world} | {' | '.join(cells)} | {peak:.0f} |", flush=True)
    if as_json:
        print(json.dumps(told))
    else:
        print(f"\nlargest error: {worst:.1%}")
    return int(worst > 0.05)


if __name__ == "__main__":
    sys.exit(main())
