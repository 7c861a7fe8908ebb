"""Avg@k and Pass@k over an evaluation set that is spread over the data-parallel replicas.

Source: Chen et al. 2021 (arXiv 2107.03374), equation 1, for the unbiased Pass@k.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb, fsum

from scope_megatron.parallel.agree import from_all
from scope_megatron.parallel.topology import Topology
from scope_megatron.rollout.prompts import PromptDataset
from scope_megatron.types import Prompt, Rollout, Verdict


def share_of_replica(dataset: PromptDataset, limit: int | None, topology: Topology) -> list[Prompt]:
    """This data-parallel replica's prompts among the first ``limit`` (None: all)."""
    count = len(dataset) if limit is None else min(limit, len(dataset))
    return [dataset[i] for i in range(topology.dp_rank, count, topology.dp_size)]


def summarize(rollouts: list[Rollout], k: int, topology: Topology) -> dict[str, float]:
    """The evaluation's numbers from every replica's graded rollouts, groups of ``k`` together."""
    mine = [
        (r.finished and r.verdict is Verdict.CORRECT, len(r.token_ids), r.finished)
        for r in rollouts
    ]
    rows = [row for replica in from_all(mine, topology.dp_group) for row in replica]
    correct = [[row[0] for row in rows[i : i + k]] for i in range(0, len(rows), k)]
    return {
        f"eval/avg@{k}": avg_at_k(correct),
        f"eval/pass@{k}": pass_at_k(correct, k),
        "eval/response_tokens_mean": sum(row[1] for row in rows) / len(rows),
        "eval/truncated": sum(not row[2] for row in rows) / len(rows),
    }


def avg_at_k(correct: Sequence[Sequence[bool]]) -> float:
    """Mean over prompts of the fraction of correct answers, in [0, 1].

    ``correct[i][j]`` says whether answer j of prompt i is correct. With k answers a prompt this
    is Avg@k. Every prompt counts the same, also when some have fewer answers.
    """
    _check(correct)
    return fsum(sum(map(bool, row)) / len(row) for row in correct) / len(correct)


def pass_at_k(correct: Sequence[Sequence[bool]], k: int) -> float:
    """Chance that k answers drawn without replacement hold a correct one, mean over prompts.

    For a prompt with n answers, c of them correct: 1 - C(n-c, k) / C(n, k), computed in exact
    integers up to the division. ValueError unless 1 <= k <= n for every prompt.
    """
    _check(correct)
    if k < 1:
        raise ValueError(f"pass@k needs k >= 1, got k={k}")
    fewest = min(len(row) for row in correct)
    if k > fewest:
        raise ValueError(
            f"pass@{k} needs at least {k} answers per prompt, a prompt has {fewest}: "
            "raise evaluation.samples or lower k"
        )
    misses = (comb(len(row) - sum(map(bool, row)), k) / comb(len(row), k) for row in correct)
    return 1.0 - fsum(misses) / len(correct)


def _check(correct: Sequence[Sequence[bool]]) -> None:
    if not correct:
        raise ValueError("no prompts to score: data.eval is empty, or evaluation.limit is 0")
    if any(not row for row in correct):
        raise ValueError("a prompt has no answers to score: evaluation.samples must be >= 1")
