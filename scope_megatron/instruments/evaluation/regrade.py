"""The samples of a finished evaluation under another verifier: nothing is drawn again."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

from scope_megatron.config import VerifierConfig
from scope_megatron.instruments.evaluation.output.report import count_results, write_results
from scope_megatron.instruments.evaluation.output.results import Results
from scope_megatron.instruments.evaluation.samples import (
    Outcome,
    SampleStore,
    without_text,
    write_lines,
)
from scope_megatron.rollout.verify import Verifiers
from scope_megatron.types import Verdict

REGRADED = "regraded"
VERDICTS = "verdicts.jsonl"
_AT_ONCE = 512

Change = tuple[Verdict, Verdict]  # before, after


def regrade(directory: Path, verifier: VerifierConfig, draws: int) -> Results:
    """Write ``DIR/regraded/VERIFIER`` as an evaluation is written, and print what changed.

    Raises ValueError when samples are missing.
    """
    store = SampleStore(directory)
    names = [entry["name"] for entry in store.identity()["sets"]]
    before = store.outcomes()
    count_results(store, before.values(), "", 1)  # refuses an unfinished evaluation
    after = list(_judged(store, names, verifier))
    results = count_results(store, after, verifier.name, draws)
    out = directory / REGRADED / verifier.name
    lines = (
        json.dumps({"set": o.set, "problem": o.problem, "sample": o.sample, "verdict": o.verdict})
        for o in after
    )
    write_lines(out / VERDICTS, lines)
    write_results(results, out, draws)
    changes = Counter((before[o.key].verdict, o.verdict) for o in after)
    print(describe_changes(changes))
    return results


def describe_changes(changes: Counter[Change]) -> str:
    """``12 of 4,096 verdicts changed: 10 incorrect -> correct, 2 timeout -> incorrect``."""
    changed = {pair: count for pair, count in changes.items() if pair[0] is not pair[1]}
    text = f"{sum(changed.values()):,} of {changes.total():,} verdicts changed"
    kinds = [f"{n:,} {a} -> {b}" for (a, b), n in sorted(changed.items())]
    return text + (f": {', '.join(kinds)}" if kinds else "")


def _judged(store: SampleStore, names: list[str], verifier: VerifierConfig) -> Iterator[Outcome]:
    """Every sample with its new verdict; the texts of ``_AT_ONCE`` samples in memory."""
    problems = {name: store.problems(name) for name in names}
    everything = (prompt for prompts in problems.values() for prompt in prompts)
    with Verifiers(verifier, everything) as judges:
        for name in names:
            samples = store.samples(name)
            while batch := list(islice(samples, _AT_ONCE)):
                items = [(s.text, problems[name][s.problem]) for s in batch]
                for sample, verdict in zip(batch, judges.grade(items), strict=True):
                    yield replace(without_text(sample), verdict=Verdict(verdict))
