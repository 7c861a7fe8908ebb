"""Which runs a profile has, in the order in which they are made: what the tables need first."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.study.methods import (
    BASE,
    CONTROLS,
    FULL,
    HARD_RATES,
    MAIN,
    METHODS,
    NORMALIZATIONS,
    RATES,
    SCOPE,
    TUNED,
)
from benchmarks.study.rows import RowFile
from benchmarks.study.settings import TUNING, fingerprint, run_settings
from benchmarks.study.stage import place_of
from tools.tasks.table import TASKS

# {task: {method: rate}}, until the tuning of `full` has chosen
LEARNING_RATES = Path(__file__).with_name("learning_rates.json")
TUNING_SEED = 100


@dataclass(frozen=True)
class Profile:
    """``tunes``: choose learning rates from runs of its own, else those of LEARNING_RATES."""

    name: str
    tasks: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    tunes: bool


_SMALL = tuple(method.name for method in MAIN)
_ALL = tuple(method.name for method in FULL)
_HARD = tuple(method.name for method in (BASE, SCOPE, *NORMALIZATIONS, CONTROLS[0], *HARD_RATES))
_TASKS = ("walk_strong", "walk", "countdown")
PROFILES = {
    "small": Profile("small", _TASKS, _SMALL, (1, 2, 3), tunes=False),
    "full": Profile("full", _TASKS, _ALL, (1, 2, 3, 4, 5), tunes=True),
    # there the weights have nothing to choose among, and responses are long
    # few responses are right: there the normalizations weigh the paths differently
    "hard": Profile("hard", ("walk_hard", "walk_hard_part"), _HARD, (1, 2, 3, 4, 5), tunes=True),
    "control": Profile("control", ("chains",), _SMALL, (1, 2, 3, 4, 5), tunes=True),
}


@dataclass(frozen=True)
class Cell:
    """A run that is to be made. Its learning rate may still have to be chosen."""

    task: str
    method: str
    seed: int
    split: str
    lr: float | None = None


def tuning_cells(profile: Profile, task: str) -> Iterator[Cell]:
    """Every rate of every method that has one of its own, on the tuning problems."""
    for name in profile.methods:
        if name in TUNED and asked_for(name, task, profile.seeds[0]):
            yield from (Cell(task, name, TUNING_SEED, TUNING, rate) for rate in RATES)


def test_cells(profile: Profile) -> Iterator[Cell]:
    """Seed by seed; small's methods before the others, so that what is there is comparable."""
    for part in (_SMALL, tuple(m for m in profile.methods if m not in _SMALL)):
        for seed in profile.seeds:
            for task in profile.tasks:
                for name in part:
                    if name in profile.methods and asked_for(name, task, seed):
                        yield Cell(task, name, seed, "test")


def asked_for(method: str, task: str, seed: int) -> bool:
    """Whether the study has this method on this task with this seed."""
    wanted = METHODS[method]
    return (wanted.tasks is None or task in wanted.tasks) and seed <= wanted.seeds


def fingerprint_of(cell: Cell, work: Path, lr: float) -> str:
    """Of a cell's settings without its seed and rate, which a row has as keys."""
    task, place = TASKS[cell.task], place_of(TASKS[cell.task], work)
    settings = run_settings(task, METHODS[cell.method], place, 0, 0.0, cell.split)
    return fingerprint(settings, place)


def chosen_rates(task: str, rows: RowFile, work: Path) -> dict[str, float]:
    """The best tried rate of every method by Avg on the tuning problems; ties: the smaller."""
    found: dict[str, dict[float, float]] = {}
    valid = {fingerprint_of(Cell(task, name, TUNING_SEED, TUNING), work, 0.0) for name in TUNED}
    for row in rows.select(task, TUNING, valid):
        counts = row["correct"][TUNING]
        found.setdefault(row["method"], {})[row["lr"]] = sum(counts) / len(counts)
    return {
        name: max(sorted(tried), key=lambda rate: tried[rate])
        for name, tried in found.items()
        if set(RATES) <= set(tried)
    }


def committed_rates(task: str) -> dict[str, float]:
    """Those that the committed study chose."""
    if not LEARNING_RATES.is_file():
        return {}
    rates: dict[str, float] = json.loads(LEARNING_RATES.read_text()).get(task, {})
    return rates


def rate_of(method: str, rates: dict[str, float]) -> float | None:
    """A method's learning rate; the base student is not trained."""
    if method == BASE.name:
        return 1e-12
    return rates.get(METHODS[method].tuned_as)
