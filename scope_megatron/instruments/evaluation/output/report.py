"""Report of an evaluation: results.json, table.md, pass_at_k.png, and the table on
the terminal."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from scope_megatron.disk import write_atomically
from scope_megatron.instruments.evaluation.output.figure import PASS_AT_K, draw_pass_at_k
from scope_megatron.instruments.evaluation.output.results import (
    Results,
    digest,
    summarize_set,
    with_intervals,
)
from scope_megatron.instruments.evaluation.output.table import results_markdown
from scope_megatron.instruments.evaluation.samples import Outcome, SampleStore

TABLE = "table.md"


def report_results(directory: Path, draws: int, metrics_line: bool = False) -> Results:
    """Write the results of a finished evaluation and print its table."""
    store = SampleStore(directory)
    verifier = str(store.identity()["verifier"])
    results = count_results(store, store.outcomes().values(), verifier, draws)
    write_results(results, directory, draws)
    if metrics_line:
        print(json.dumps({"model": results.model, **metrics(results)}))
    return results


def count_results(
    store: SampleStore, outcomes: Iterable[Outcome], verifier: str, draws: int
) -> Results:
    """Results of all outcomes of the store, as judged by ``verifier``.

    Raises ValueError while samples are missing.
    """
    identity = store.identity()
    sampling = identity["sampling"]
    by_set = defaultdict(list)
    for outcome in outcomes:
        by_set[outcome.set].append(outcome)
    sets = []
    for entry in identity["sets"]:
        name, found = entry["name"], by_set[entry["name"]]
        missing = entry["problems"] * sampling["samples"] - len(found)
        if missing:
            raise ValueError(
                f"{store.directory}: {missing:,} samples of {name} are missing; repeat the "
                "evaluate command to go on"
            )
        digests = [digest(p.text, p.answer) for p in store.problems(name)]
        sets.append(summarize_set(name, found, digests, sampling["samples"], entry["skipped"]))
    finished, mean = with_intervals(sets, sampling["samples"], draws, sampling["seed"])
    return Results(
        model=identity["model"],
        samples=sampling["samples"],
        verifier=verifier,
        sampling=sampling,
        sets=finished,
        mean=mean,
    )


def write_results(results: Results, directory: Path, draws: int) -> None:
    """results.json, table.md and pass_at_k.png in ``directory``; the table is printed."""
    directory.mkdir(parents=True, exist_ok=True)
    results.write(directory)
    page = results_markdown(results, draws)
    write_atomically(directory / TABLE, page)
    draw_pass_at_k([(results.model, results)], directory / PASS_AT_K)
    print(f"\n{page}\nwritten to {directory}: {TABLE}, {PASS_AT_K}, results.json", flush=True)


def metrics(results: Results) -> dict[str, float]:
    """The numbers under the names that training logs; with several sets, under each set's."""
    values: dict[str, float] = {}
    for entry in results.sets:
        prefix = f"eval/{entry.scores.name}/" if results.mean else "eval/"
        values |= {
            f"{prefix}avg@{results.samples}": entry.scores.avg.value,
            f"{prefix}pass@{results.samples}": entry.scores.passes[-1].unbiased.value,
            f"{prefix}response_tokens_mean": entry.lengths.mean,
            f"{prefix}truncated": entry.truncated,
        }
    return values
