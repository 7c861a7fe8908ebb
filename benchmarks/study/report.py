"""Everything that a study writes: tables.md, figure_3.png to figure_6.png, figures.json."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.study import figures, tables
from benchmarks.study.cells import Profile, test_cells
from benchmarks.study.methods import METHODS
from benchmarks.study.results import gather, present
from benchmarks.study.rows import RowFile
from scope_megatron.disk import write_atomically


def write(profile: Profile, rows: RowFile, work: Path, out: Path) -> str:
    """Write all of it into ``out``; returns the tables."""
    found = [gather(profile, task, rows, work) for task in profile.tasks]
    found = [results for results in found if results.runs]
    wanted = len(list(test_cells(profile)))
    made = sum(len(seeds) for results in found for seeds in results.runs.values())
    parts = [
        f"Profile {profile.name}: {made} of {wanted} runs are finished. Percent and points; in "
        "brackets 95% intervals, bootstrap over seeds and problems (paired for differences). Bold: "
        "the interval leaves out 0."
    ]
    if summary := tables.summary_table(found):
        parts += ["## SCOPE against the others, easy and hard problems together", summary]
    if rewarded := tables.rewarded_table(found):
        parts += ["## Every method against GRPO, easy and hard problems together", rewarded]
    for results in found:
        parts += [f"## {results.task}", tables.accuracy_table(results)]
        parts += [tables.difference_table(results)]
        more = tables.spread_table(results), tables.endings_table(results)
        parts += [part for part in more if part]
        if rates := tables.rates_table(results):
            parts += ["Avg@16 on the tuning problems:", rates]
    text = "\n\n".join(parts) + "\n"
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "tables.md", text)
    if any(present(results, tuple(METHODS)) for results in found):
        data = figures.draw_all(found, out)
        write_atomically(out / "figures.json", json.dumps(data, indent=1) + "\n")
    return text
