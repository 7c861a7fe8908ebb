"""Avg@k and Pass@k of the student on held-out prompts, sampled by the engine."""

from __future__ import annotations

import torch.distributed as dist

from scope_megatron.config import Config
from scope_megatron.parallel.topology import Topology
from scope_megatron.rollout.engine import Engine, Sampling
from scope_megatron.rollout.prompts import PromptDataset
from scope_megatron.rollout.sample import EnginePlace, grade, sample
from scope_megatron.rollout.tokenizer import Tokenizer
from scope_megatron.rollout.verify import Verifier
from scope_megatron.train.scoring import avg_at_k, pass_at_k
from scope_megatron.types import Prompt, Rollout


def evaluate(
    config: Config,
    engine: Engine,
    place: EnginePlace,
    dataset: PromptDataset,
    verifier: Verifier,
    tokenizer: Tokenizer,
    topology: Topology,
) -> dict[str, float]:
    """``eval/avg@k`` and ``eval/pass@k`` in [0, 1] over the whole evaluation set (collective).

    The same problems and seeds at every call. A response that nobody could judge, or that was cut
    off, counts as wrong.
    """
    settings = config.evaluation
    limit = config.evaluation_response_tokens
    assert limit is not None
    sampling = Sampling(
        samples=settings.samples,
        max_tokens=limit,
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        seed=config.seed,
    )
    rollouts = sample(engine, _share(dataset, settings.limit, topology), sampling, topology, place)
    grade(rollouts, verifier, tokenizer, topology)
    return _summary(_over_replicas(rollouts, topology), settings.samples)


def _share(dataset: PromptDataset, limit: int | None, topology: Topology) -> list[Prompt]:
    """This data-parallel replica's prompts."""
    count = len(dataset) if limit is None else min(limit, len(dataset))
    return [dataset[i] for i in range(topology.dp_rank, count, topology.dp_size)]


def _over_replicas(rollouts: list[Rollout], topology: Topology) -> list[tuple[bool, int, bool]]:
    """(correct, response tokens, finished) of every rollout of every replica, groups together."""
    mine = [(r.finished and r.verdict == "correct", len(r.token_ids), r.finished) for r in rollouts]
    gathered: list[list[tuple[bool, int, bool]]] = [[] for _ in range(topology.dp_size)]
    dist.all_gather_object(gathered, mine, group=topology.dp_group)
    return [row for rows in gathered for row in rows]


def _summary(rows: list[tuple[bool, int, bool]], k: int) -> dict[str, float]:
    correct = [[row[0] for row in rows[i : i + k]] for i in range(0, len(rows), k)]
    return {
        f"eval/avg@{k}": avg_at_k(correct),
        f"eval/pass@{k}": pass_at_k(correct, k),
        "eval/response_tokens_mean": sum(row[1] for row in rows) / len(rows),
        "eval/truncated": sum(not row[2] for row in rows) / len(rows),
    }
