"""The planner against measured tensor memory, and against published rows.

    python -m benchmarks.bench_plan [--every] [--only NAME] [--published] [--tables] [--json]

Without options eight layouts of tests/support/plan_layouts.py are run on gloo ranks of this
machine's CPU, and the error of every tenant is printed (positive: the plan says more); then the
rows that others measured on GPUs, each beside its plan, misses included. --every: all layouts,
--only: those whose name contains this, --published: the published rows alone, --tables: the
layouts of docs/planning.md, found anew.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a script's own folder is not enough

from benchmarks.plan_published import pretraining_rows
from benchmarks.plan_steps import step_rows
from benchmarks.plan_tables import tables
from tests.support.harness import run_distributed_test
from tests.support.plan_layouts import (
    CASES,
    Case,
    Measured,
    errors,
    make_models,
    measure,
    planned,
)

MIB = 2**20
TENANTS = ("student", "gradients", "optimizer", "teacher", "states", "activations", "scoring")


# one for each way of cutting a run
EIGHT = (
    "tensor 2, sequence",
    "pipeline 2",
    "pipeline 2, virtual 2",
    "context 2",
    "data 2, distributed optimizer",
    "mixture, data 2, expert 2",
    "recompute full",
    "optimizer offload",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--every", action="store_true", help="measure all layouts")
    parser.add_argument("--only", help="layouts whose name contains this")
    parser.add_argument("--published", action="store_true", help="published rows alone")
    parser.add_argument("--tables", action="store_true", help="print the documentation's tables")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    if arguments.tables:
        print("\n".join(tables()))
        return 0
    wrong = 0
    if not arguments.published:
        cases = [case for case in CASES if arguments.every or case.name in EIGHT]
        if arguments.only:
            cases = [case for case in CASES if arguments.only in case.name]
        with tempfile.TemporaryDirectory(prefix="bench-plan-") as name:
            root = Path(name)
            make_models(root)
            wrong = measure_all(root, cases, arguments.json)
    if not arguments.json and not arguments.only:
        print("\n".join(["", *pretraining_rows(), "", *step_rows()]))
    return wrong


def measure_all(root: Path, cases: list[Case], as_json: bool) -> int:
    """Print a row per layout; 1 if any tenant is further off than 5%."""
    worst = 0.0
    told = {}
    if not as_json:
        print("| layout | ranks | " + " | ".join(TENANTS) + " | activations MiB |")
        print("|" + "---|" * (len(TENANTS) + 3))
    for case in cases:
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
