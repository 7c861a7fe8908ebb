"""Finished evaluations made without a model: samples with known verdicts on disk."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from scope_megatron.instruments.evaluation.samples import Sample, SampleStore, SampleWriter
from scope_megatron.types import Prompt, Verdict

SAMPLING = {
    "samples": 4,
    "temperature": 0.6,
    "top_p": 0.95,
    "top_k": 20,
    "max_tokens": 64,
    "seed": 1234,
    "dtype": "auto",
}


def make_evaluation(
    directory: Path, model: str, correct: dict[str, Sequence[int]], samples: int = 4
) -> SampleStore:
    """Problem i of a set asks for i + i; the first ``correct[set][i]`` of its samples say it."""
    identity = {
        "model": model,
        "verifier": "auto",
        "sampling": SAMPLING | {"samples": samples},
        "sets": [
            {"name": name, "problems": len(counts), "skipped": 0}
            for name, counts in correct.items()
        ],
    }
    store = SampleStore(directory)
    problems = {
        name: [Prompt(i, (1, i), str(2 * i), text=f"{i}+{i}") for i in range(len(counts))]
        for name, counts in correct.items()
    }
    store.begin(identity, problems)
    with closing(SampleWriter(directory, 0)) as writer:
        for name, counts in correct.items():
            for i, count in enumerate(counts):
                for k in range(samples):
                    writer.write(_sample(name, i, k, k < count))
    store.finish(correct)
    return store


def _sample(name: str, problem: int, k: int, right: bool) -> Sample:
    answer = 2 * problem if right else 2 * problem + 1
    verdict = Verdict.CORRECT if right else Verdict.INCORRECT
    return Sample(name, problem, k, 10 + k, True, verdict, text=f"It is \\boxed{{{answer}}}.")
