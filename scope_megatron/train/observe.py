"""The numbers of one step, from what the step had at hand."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scope_megatron.config import Config
from scope_megatron.report.metrics import StepMetrics
from scope_megatron.train.algorithms import SequenceStreams
from scope_megatron.train.batch import Batch, reward

_LOSSES = ("mle", "kl", "pg", "nll", "kl_ref")


def step_metrics() -> StepMetrics:
    """Every name a training step may record, with how it is reduced over the data ranks."""
    return StepMetrics(
        sums=[
            "path/correct",
            "path/incorrect",
            "path/masked",
            "path/unscored",
            "rollout/truncated",
            "tokens/response",
            "tokens/total",
            "loss/total",
            *(f"loss/{name}" for name in _LOSSES),
        ],
        means=[
            "reward/mean",
            "rollout/response_tokens_mean",
            "perplexity/student_correct",
            "perplexity/student_incorrect",
            "perplexity/teacher_incorrect",
            "weight/student_spread",
            "weight/teacher_spread",
            "mismatch/mean_abs_logprob",
            "mismatch/mean_abs_prob",
            "mismatch/k3_kl",
            "mismatch/tis_clipped",
        ],
        maxima=[
            "sync/max_abs_logprob_diff",
            "sync/mean_abs_logprob_diff",
            "lr",
            "grad_norm",
            "update/skipped",
        ],
    )


def observe_batch(metrics: StepMetrics, batch: Batch, config: Config) -> None:
    """Record a batch's rollouts, perplexities, rewards and engine mismatch."""
    _rollouts(metrics, batch)
    _perplexities(metrics, batch)
    if config.on_policy:
        _rewards(metrics, batch)
        _mismatch(metrics, batch, config)


def _rewards(metrics: StepMetrics, batch: Batch) -> None:
    rewards = [r for r in map(reward, batch.rollouts) if r is not None]
    metrics.mean("reward/mean", float(sum(rewards)), len(rewards))


def _rollouts(metrics: StepMetrics, batch: Batch) -> None:
    """Path sizes and lengths."""
    metrics.sum("path/correct", int(batch.routes.correct.sum()))
    metrics.sum("path/incorrect", int(batch.routes.incorrect.sum()))
    metrics.sum("path/masked", int(batch.routes.masked.sum()))
    metrics.sum("path/unscored", len(batch.unscored))
    metrics.sum("rollout/truncated", sum(not r.finished for r in batch.rollouts))
    metrics.mean("rollout/response_tokens_mean", int(batch.lengths.sum()), len(batch.rollouts))
    metrics.sum("tokens/response", int(batch.lengths.sum()))
    metrics.sum("tokens/total", sum(r.length for r in batch.rollouts))


def _perplexities(metrics: StepMetrics, batch: Batch) -> None:
    """Geometric mean over responses of each path's perplexity: exp of the mean log-perplexity."""
    for name, logprobs, mask in (
        ("perplexity/student_correct", batch.old_logprobs, batch.routes.correct),
        ("perplexity/student_incorrect", batch.old_logprobs, batch.routes.incorrect),
        ("perplexity/teacher_incorrect", batch.teacher_logprobs, batch.routes.incorrect),
    ):
        scored = [float(logprobs[i].mean()) for i in batch.members(mask) if i in logprobs]
        metrics.mean(name, -sum(scored), len(scored))


def observe_weights(metrics: StepMetrics, batch: Batch, streams: SequenceStreams) -> None:
    """Largest over smallest weight in a group's path; geometric mean over groups of two or more."""
    for name, weights in (
        ("weight/student_spread", streams.student_weight),
        ("weight/teacher_spread", streams.teacher_weight),
    ):
        spreads = _log_spreads(weights, batch.group) if weights is not None else []
        metrics.mean(name, sum(spreads), len(spreads))


def _log_spreads(weights: Tensor, group: Tensor) -> list[float]:
    spreads = []
    for label in group.unique():
        inside = weights[(group == label) & (weights > 0)]
        if inside.numel() > 1:
            spreads.append(float((inside.max() / inside.min()).log()))
    return spreads


def _mismatch(metrics: StepMetrics, batch: Batch, config: Config) -> None:
    """Engine against trainer on the sampled tokens: |d log p|, |d p|, k3 of KL(engine || trainer).

    And the share of tokens whose importance weight is cut off at objective.tis_clip.
    Only where both speak of the same distribution: top-p and top-k renormalise the engine's.
    """
    rollout = config.rollout
    if rollout is None or rollout.top_p < 1 or rollout.top_k > 0:
        return
    if config.objective.old_logprobs == "rollout" or not batch.old_logprobs:
        return
    old = torch.cat([batch.old_logprobs[i] for i in sorted(batch.old_logprobs)])
    engine = torch.tensor(
        [p for i in sorted(batch.old_logprobs) for p in batch.rollouts[i].engine_logprobs]
    )
    gap = old - engine
    metrics.mean("mismatch/mean_abs_logprob", float(gap.abs().sum()), gap.numel())
    metrics.mean(
        "mismatch/mean_abs_prob", float((old.exp() - engine.exp()).abs().sum()), gap.numel()
    )
    metrics.mean("mismatch/k3_kl", float((gap.expm1() - gap).sum()), gap.numel())
    if config.objective.tis_clip is not None:
        clipped = gap > math.log(config.objective.tis_clip)
        metrics.mean("mismatch/tis_clipped", float(clipped.sum()), gap.numel())


def observe_losses(metrics: StepMetrics, terms: dict[str, float]) -> None:
    for name, value in terms.items():
        metrics.sum(f"loss/{name}", value)
        metrics.sum("loss/total", value)


def finish(values: dict[str, float]) -> dict[str, float]:
    """Turn means of logarithms into geometric means, and drop losses that no algorithm here has."""
    done = {}
    for name, value in values.items():
        if name.startswith(("perplexity/", "weight/")):
            value = math.exp(min(value, 700.0))
        if name.startswith("loss/") and value == 0.0 and name != "loss/total":
            continue
        done[name] = value
    return done
