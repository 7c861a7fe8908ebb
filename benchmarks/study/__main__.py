"""`python -m benchmarks.study --profile small|full|hard|control`; see the package's docstring.

Runs that are in the file of rows already are not made again; interrupt and start it as you like,
also several times side by side: a run is made by one of them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Annotated, Any

import typer

from benchmarks.rounds import ROOT
from benchmarks.study import cells, report
from benchmarks.study.cells import PROFILES, Cell, Profile
from benchmarks.study.methods import KD, METHODS
from benchmarks.study.rows import Key, RowFile
from benchmarks.study.runner import RunFailed, claimed, run_cell
from benchmarks.study.settings import run_settings
from benchmarks.study.stage import place_of, prepare_data, prepare_taught
from tools.tasks.table import TASKS

RUN_MINUTES = 1.0  # of one run on one core of the machine of docs/study.md


class Study:
    """What the threads share: the rows, and where things are."""

    def __init__(self, profile: Profile, rows: RowFile, work: Path, jobs: int) -> None:
        self.profile, self.rows, self.work, self.jobs = profile, rows, work, jobs
        self._lock = Lock()
        self.failed = 0

    def make(self, wanted: Iterable[Cell]) -> None:
        """Every cell that has no row yet, ``jobs`` at a time."""
        with ThreadPoolExecutor(self.jobs) as pool:
            for _ in pool.map(self._one, wanted):
                pass

    def _one(self, cell: Cell) -> None:
        rate = cell.lr or cells.rate_of(cell.method, self.rates(cell.task))
        if rate is None:
            return
        task, place = TASKS[cell.task], place_of(TASKS[cell.task], self.work)
        settings = run_settings(task, METHODS[cell.method], place, cell.seed, rate, cell.split)
        mark = cells.fingerprint_of(cell, self.work, rate)
        key = Key(cell.task, cell.method, cell.seed, rate, cell.split, mark)
        with claimed(key, self.work / "claims") as mine:
            if not mine or key in self.rows.rows or key in self.rows.read():
                return
            self._run(key, settings)

    def _run(self, key: Key, settings: dict[str, Any]) -> None:
        try:
            if METHODS[key.method] is KD:
                place = place_of(TASKS[key.task], self.work)
                prepare_taught(TASKS[key.task], place, self.work / key.task / "taught.log")
            row = run_cell(key, settings, self.work / "runs")
        except RunFailed as error:
            self.failed += 1
            print(f"failed: {key.task} {key.method} seed {key.seed}: {error}", file=sys.stderr)
            return
        with self._lock:
            self.rows.add(row)
        accuracies = [f"{name} {_percent(c, row['samples'])}" for name, c in row["correct"].items()]
        print(
            f"{time.strftime('%H:%M:%S')} {key.task} {key.method} seed {key.seed} lr {key.lr:g}: "
            f"{', '.join(accuracies)}; {row['seconds']:.0f} s",
            flush=True,
        )

    def rates(self, task: str) -> dict[str, float]:
        """Chosen here where the profile tunes, else the committed ones."""
        chosen = cells.chosen_rates(task, self.rows, self.work) if self.profile.tunes else {}
        return cells.committed_rates(task) | chosen


def known_task(name: str) -> str:
    """The name; ends the program for one that is none."""
    if name not in TASKS:
        raise SystemExit(f"--tasks: {name!r} is no task; give some of {', '.join(TASKS)}")
    return name


def known_method(name: str) -> str:
    """The name; ends the program for one that is none."""
    if name not in METHODS:
        raise SystemExit(f"--methods: {name!r} is none; give some of {', '.join(METHODS)}")
    return name


def _percent(counts: list[int], samples: int) -> str:
    return f"{100 * sum(counts) / (samples * len(counts)):.1f}"


def main(
    profile: Annotated[
        str, typer.Option(help="small: table 1; full: all; hard: normalizations; control: chains.")
    ] = "small",
    rows: Annotated[
        Path | None, typer.Option(help="File of finished runs; left out: WORK/rows.jsonl.")
    ] = None,
    work: Annotated[Path, typer.Option(help="Data, logs, running runs.")] = ROOT / "runs/study",
    out: Annotated[
        Path | None, typer.Option(help="Tables and figures; left out: WORK/PROFILE.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs side by side, a core each.")] = 2,
    tasks: Annotated[str, typer.Option(help="Only these, separated by commas.")] = "",
    methods: Annotated[str, typer.Option(help="Make only these, separated by commas.")] = "",
    only_report: Annotated[bool, typer.Option(help="Make no run, draw what is there.")] = False,
) -> None:
    """Make the runs that are missing, then write tables and figures."""
    if profile not in PROFILES:
        raise SystemExit(f"--profile: {profile!r} is none; give {', '.join(PROFILES)}")
    chosen, work = PROFILES[profile], work.resolve()
    if tasks:
        chosen = replace(chosen, tasks=tuple(map(known_task, tasks.split(","))))
    study = Study(chosen, RowFile(rows or work / "rows.jsonl"), work, jobs)
    for name in chosen.tasks:
        prepare_data(TASKS[name], work)
    if not only_report:
        tuning = [c for name in chosen.tasks for c in cells.tuning_cells(chosen, name)]
        tuning = tuning if chosen.tunes else []
        tests = list(cells.test_cells(chosen))
        if methods:
            only = set(map(known_method, methods.split(",")))
            tuning, tests = ([c for c in some if c.method in only] for some in (tuning, tests))
        count = len(tuning) + len(tests)
        print(
            f"{profile}: {count} runs, {len(study.rows.rows)} rows are there; about "
            f"{count * RUN_MINUTES / 60 / jobs:.1f} h for all of them, {jobs} side by side",
            flush=True,
        )
        study.make(tuning)
        study.make(tests)
    print(report.write(chosen, study.rows, work, out or work / profile))
    sys.exit(1 if study.failed else 0)


if __name__ == "__main__":
    typer.run(main)
