"""Avg@k and Pass@k over an evaluation set that is spread over the data-parallel replicas."""

from __future__ import annotations

from scope_megatron.data.dataset import PromptDataset
from scope_megatron.parallel.agree import from_all
from scope_megatron.parallel.topology import Topology
from scope_megatron.rollout.statistics import avg_at_k, pass_at_k
from scope_megatron.types import Prompt, Rollout, Verdict


def share_of_replica(dataset: PromptDataset, limit: int | None, topology: Topology) -> list[Prompt]:
    """This data-parallel replica's prompts among the first ``limit`` (None: all)."""
    count = len(dataset) if limit is None else min(limit, len(dataset))
    return [dataset[i] for i in range(topology.dp_rank, count, topology.dp_size)]


def join_sets(values: dict[str, dict[str, float]]) -> dict[str, float]:
    """The numbers of every evaluation set, ``eval/NAME/...``, and their means over the sets.

    One set without a name has the means alone: they are its numbers.
    """
    own = {
        f"eval/{name}/{key.removeprefix('eval/')}": value
        for name, numbers in values.items()
        for key, value in numbers.items()
        if name
    }
    keys = next(iter(values.values()))
    means = {key: sum(numbers[key] for numbers in values.values()) / len(values) for key in keys}
    return means | own


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
