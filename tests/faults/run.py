"""Put faults into real runs and print what became of each.

    python tests/faults/run.py [--only PATTERN] [--list] [--markdown FILE] [--patience FACTOR]

Exit code 1 when a case misses its target: noticed within 30 s, at most the step in flight made
again, no process left behind, every step once in the metrics, and the run gone on with.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.faults.apart import APART_CASES  # noqa: E402
from tests.faults.cases import CASES, Case  # noqa: E402
from tests.faults.stage import Impossible, Missed, Outcome, Stage  # noqa: E402

NOTICED_S = 30.0
COLUMNS = ("fault", "noticed after", "steps made again", "went on by", "result")


@dataclass
class Result:
    """What became of a case; ``reason`` says why it missed."""

    case: Case
    outcome: Outcome | None
    reason: str
    seconds: float
    skipped: str = ""

    def cells(self) -> tuple[str, ...]:
        result = f"MISSED: {self.reason}" if self.reason else self.skipped or "ok"
        if self.outcome is None:
            return (self.case.name, "-", "-", "-", result)
        noticed = f"{self.outcome.noticed_s:.1f} s"
        return (self.case.name, noticed, str(self.outcome.again), self.outcome.went_on, result)


def run_case(case: Case, keep: bool = False, patience: float = 1.0) -> Result:
    """Play it in a directory of its own, and judge it. Of one that missed, the output stays.

    ``patience``: factor of the times in which it has to be noticed and to end.
    """
    directory = Path(tempfile.mkdtemp(prefix="fault-"))
    stage = Stage(directory, case.timeout_s * patience, case.engine, case.steps)
    begin, outcome, reason, skipped = time.monotonic(), None, "", ""
    try:
        outcome = case.body(stage)
        stage.check()
        if outcome.noticed_s > NOTICED_S * patience:
            reason = f"noticed after more than {NOTICED_S * patience:.0f} s"
        elif outcome.again > case.again:
            reason = f"more than {case.again} steps were made again"
    except Missed as missed:
        reason = str(missed)
    except Impossible as why:
        skipped = f"skipped: {why}"
    except Exception as error:  # a defect of a case must not hide what became of the others
        reason = f"{type(error).__name__}: {error}"
    finally:
        stage.close()
    if reason or keep:
        for number, run in enumerate(stage.runs):
            (directory / f"output_{number}.txt").write_text(run.text)
        reason += f" (see {directory})" if reason else ""
    else:
        shutil.rmtree(directory, ignore_errors=True)
    return Result(case, outcome, reason, time.monotonic() - begin, skipped)


def table(results: list[Result]) -> Table:
    found = Table(*COLUMNS, title="Injected faults")
    for result in results:
        found.add_row(*result.cells())
    return found


def markdown(results: list[Result]) -> str:
    rows = [COLUMNS, ("---", "---:", "---:", "---", "---"), *(one.cells() for one in results)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=RAW)
    parser.add_argument("--only", metavar="PATTERN", default="", help="cases whose name has it")
    parser.add_argument("--list", action="store_true", help="name the cases, run none")
    parser.add_argument("--markdown", metavar="FILE", type=Path, help="write the table there too")
    parser.add_argument("--keep", action="store_true", help="keep every case's directory")
    parser.add_argument(
        "--patience", metavar="FACTOR", type=float, default=1.0, help="on a machine that is busy"
    )
    options = parser.parse_args()
    chosen = [case for case in [*CASES, *APART_CASES] if re.search(options.only, case.name)]
    if options.list:
        print("\n".join(case.name for case in chosen))
        return 0
    console, results = Console(), list[Result]()
    for number, case in enumerate(chosen, 1):
        result = run_case(case, options.keep, options.patience)
        results.append(result)
        _, *cells = result.cells()
        line = f"{number:2}/{len(chosen)} {case.name}: {', '.join(cells)} ({result.seconds:.0f} s)"
        console.print(line, highlight=False, soft_wrap=True)
        if options.markdown:
            options.markdown.write_text(markdown(results))
    console.print(table(results))
    return int(any(result.reason for result in results) or not results)


RAW = argparse.RawDescriptionHelpFormatter

if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main())
