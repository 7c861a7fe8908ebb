"""Results as Markdown: Avg@n and Pass@k with intervals, then what the responses look like."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from scope_megatron.instruments.evaluation.output.results import Accuracies, Estimate, Results


def results_markdown(results: Results, draws: int) -> str:
    """The page table.md; the same text for the same samples, however they were drawn."""
    n, sampling = results.samples, results.sampling
    rows = [entry.scores for entry in results.sets]
    if results.mean is not None:
        rows.append(results.mean)
    ks = [entry.k for entry in rows[0].passes]
    how = (
        f"{n} samples per problem, temperature {sampling['temperature']:g}, top-p "
        f"{sampling['top_p']:g}, top-k {sampling['top_k']}, at most {sampling['max_tokens']:,} "
        f"tokens, seed {sampling['seed']}; verifier: {results.verifier}."
    )
    notes = [
        f"Percent, with 95% intervals by bootstrap over problems ({draws:,} draws). Pass@k is "
        "unbiased (Chen et al. 2021)."
    ]
    if results.mean is not None:
        notes.append("The mean counts every set the same.")
    skipped = [f"{entry.skipped} of {entry.scores.name}" for entry in results.sets if entry.skipped]
    if skipped:
        notes.append(f"Rows that could not be asked: {', '.join(skipped)}.")
    parts = [
        f"# {results.model}",
        how,
        markdown_table(
            ["set", "problems", f"Avg@{n}", *(f"Pass@{k}" for k in ks)],
            ([s.name, f"{s.problems:,}", _percent(s.avg), *_unbiased(s)] for s in rows),
        ),
        " ".join(notes),
        "Pass@k as the reference code estimates it: k draws with replacement from the same "
        "samples, in expectation. Never above the unbiased Pass@k.",
        markdown_table(
            ["set", *(f"Pass@{k}" for k in ks)], ([s.name, *_with_replacement(s)] for s in rows)
        ),
        "Responses, in tokens. Those cut off at the limit, or that the verifier could not judge, "
        "count as wrong.",
        _responses(results),
    ]
    return "\n\n".join(parts) + "\n"


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _responses(results: Results) -> str:
    head = ["set", "mean", "median", "longest", "correct ones", "wrong ones", "cut off", "unjudged"]
    rows = [
        [
            entry.scores.name,
            f"{entry.lengths.mean:,.1f}",
            f"{entry.lengths.median:,.1f}",
            f"{entry.lengths.longest:,}",
            _tokens(entry.lengths.mean_correct),
            _tokens(entry.lengths.mean_incorrect),
            f"{100 * entry.truncated:.1f}%",
            f"{entry.unjudged:,}",
        ]
        for entry in results.sets
    ]
    return markdown_table(head, rows)


def _unbiased(scores: Accuracies) -> list[str]:
    return [_percent(entry.unbiased) for entry in scores.passes]


def _with_replacement(scores: Accuracies) -> list[str]:
    return [_percent(entry.with_replacement) for entry in scores.passes]


def _percent(estimate: Estimate) -> str:
    """``81.3 [78.0, 84.4]``."""
    value, low, high = (100 * number for number in (estimate.value, estimate.low, estimate.high))
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def _tokens(mean: float | None) -> str:
    return "-" if mean is None else f"{mean:,.1f}"
