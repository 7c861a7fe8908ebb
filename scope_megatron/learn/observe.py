"""The numbers of one step, from what the step had at hand."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from scope_megatron.config import Config
from scope_megatron.learn.algorithms import Weighed
from scope_megatron.learn.batch import Batch, reward
from scope_megatron.learn.passes import samples_everything
from scope_megatron.logging.metrics import StepMetrics
from scope_megatron.objective.loss import TERMS

# Seconds that report/overlap.py reads (docs/metrics.md).
SAMPLING = ("engine", "grading", "graded", "waited", "tail", "scored", "ahead", "beside", "hidden")


def step_metrics(teachers: Iterable[str] = ()) -> StepMetrics:
    """Every name a training step may record, with how it is reduced over the data ranks.

    ``teachers``: the tags of several, each of which has its own numbers.
    """
    by_teacher = [f"teacher/{tag}" for tag in teachers]
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
            *(f"loss/{name}" for name in TERMS),
            *(f"{name}/responses" for name in by_teacher),
        ],
        means=[
            "reward/mean",
            "group/all_correct",
            "group/all_incorrect",
            "rollout/response_tokens_mean",
            "perplexity/student_correct",
            "perplexity/student_incorrect",
            "perplexity/teacher_incorrect",
            "entropy/student_correct",
            "entropy/student_incorrect",
            "entropy/teacher_incorrect",
            "weight/student_spread",
            "weight/teacher_spread",
            "weight/student_ess",
            "weight/teacher_ess",
            "balance/padded_share",
            "balance/experts",
            "mismatch/mean_abs_logprob",
            "mismatch/mean_abs_prob",
            "mismatch/k3_kl",
            "mismatch/tis_clipped",
            *(f"{name}/{what}" for name in by_teacher for what in ("perplexity", "kl")),
            "staleness/ratio_ess",
            "staleness/share",
            "sampling/left",
        ],
        maxima=[
            "sync/max_abs_logprob_diff",
            "sync/mean_abs_logprob_diff",
            "lr",
            "grad_norm",
            "update/skipped",
            "balance/imbalance",
            "time/wait",
            *(f"sampling/{name}_s" for name in SAMPLING),
            "staleness/steps",
        ],
    )


def note_rows(batch: Batch, index: int, values: Tensor) -> None:
    """Record a response's rows of the training pass: [length, ROW_COLUMNS], NaN where unknown."""
    logprob, teacher, entropy, divergence = values.unbind(1)
    batch.logprobs[index] = logprob.contiguous()
    if index not in batch.teacher_logprobs and not bool(teacher.isnan().all()):
        batch.teacher_logprobs[index] = teacher.contiguous()
    if len(entropy) and not bool(entropy.isnan().any()):
        batch.student_entropy.setdefault(index, float(entropy.mean()))
        batch.token_entropy[index] = entropy
    if len(divergence) and not bool(divergence.isnan().any()):
        batch.divergence[index] = divergence


def observe_batch(metrics: StepMetrics, batch: Batch, config: Config) -> None:
    """Record a batch's rollouts, perplexities, rewards and engine mismatch."""
    _rollouts(metrics, batch)
    _perplexities(metrics, batch)
    _entropies(metrics, batch)
    metrics.maximum("balance/imbalance", batch.imbalance)
    if config.on_policy:
        _rewards(metrics, batch)
        _groups(metrics, batch)
        _mismatch(metrics, batch, config)


def observe_update(
    metrics: StepMetrics, batch: Batch, weighed: Weighed, terms: dict[str, float]
) -> None:
    """Losses; and of a path's weights among the responses they compare, a group's or the batch's,
    as geometric means over paths of two or more: their spread, largest over smallest, and their
    effective sample size over their number, (sum w)^2 / (n sum w^2): 1 when all are equal, 1/n
    when one is everything."""
    for name, value in terms.items():
        metrics.sum(f"loss/{name}", value)
        metrics.sum("loss/total", value)
    _teachers(metrics, batch)
    for side, weights in (
        ("student", weighed.student_weight),
        ("teacher", weighed.teacher_weight),
    ):
        labels = batch.group if weighed.compared is None else weighed.compared
        spreads, sizes = _log_spreads(weights, labels) if weights is not None else ([], [])
        metrics.mean(f"weight/{side}_spread", sum(spreads), len(spreads))
        metrics.mean(f"weight/{side}_ess", sum(sizes), len(sizes))


def _teachers(metrics: StepMetrics, batch: Batch) -> None:
    """By tag: the responses that a teacher scored, their perplexity under it (geometric mean), and
    the mean per token of the divergence, or of the log-ratio of the sampled tokens."""
    for index, rollout in batch.rollouts.items():
        name = f"teacher/{rollout.prompt.tag}"
        theirs, ours = batch.teacher_logprobs.get(index), batch.logprobs.get(index)
        each = batch.divergence.get(index)
        if not metrics.has(f"{name}/responses") or (theirs is None and each is None):
            continue
        metrics.sum(f"{name}/responses", 1)
        if theirs is not None:
            metrics.mean(f"{name}/perplexity", -float(theirs.mean()))
        if each is None and ours is not None and theirs is not None:
            each = ours - theirs
        if each is not None:
            metrics.mean(f"{name}/kl", float(each.sum()), len(each))


def _rewards(metrics: StepMetrics, batch: Batch) -> None:
    rewards = [r for r in map(reward, batch.rollouts.values()) if r is not None]
    metrics.mean("reward/mean", float(sum(rewards)), len(rewards))


def _groups(metrics: StepMetrics, batch: Batch) -> None:
    """Shares of groups whose routed responses are all on one path, among those with two or more: a
    single response compares nothing. Every rank knows the whole batch, so the mean over ranks is
    each one's."""
    labels, sizes = batch.group[batch.routes.routed].unique(return_counts=True)
    groups = {*labels[sizes > 1].tolist()}
    correct = groups & {*batch.group[batch.routes.correct].tolist()}
    incorrect = groups & {*batch.group[batch.routes.incorrect].tolist()}
    metrics.mean("group/all_correct", len(groups - incorrect), len(groups))
    metrics.mean("group/all_incorrect", len(groups - correct), len(groups))


def _rollouts(metrics: StepMetrics, batch: Batch) -> None:
    """Path sizes and lengths."""
    held, routes = batch.rollouts.values(), batch.routes
    metrics.sum("path/correct", len(batch.members(routes.correct)))
    metrics.sum("path/incorrect", len(batch.members(routes.incorrect)))
    metrics.sum("path/masked", len(batch.members(routes.masked)))
    metrics.sum("path/unscored", len(batch.unscored & batch.rollouts.keys()))
    metrics.sum("rollout/truncated", sum(not r.finished for r in held))
    tokens = sum(len(r.token_ids) for r in held)
    metrics.mean("rollout/response_tokens_mean", tokens, len(held))
    metrics.sum("tokens/response", tokens)
    metrics.sum("tokens/total", sum(r.length for r in held))


def _student_logprobs(batch: Batch) -> dict[int, Tensor]:
    """Of the weights that sampled: scored before the update, or by its own pass."""
    return batch.logprobs | batch.old_logprobs


def _perplexities(metrics: StepMetrics, batch: Batch) -> None:
    """Geometric mean over responses of each path's perplexity: exp of the mean log-perplexity."""
    student = _student_logprobs(batch)
    for name, logprobs, mask in (
        ("perplexity/student_correct", student, batch.routes.correct),
        ("perplexity/student_incorrect", student, batch.routes.incorrect),
        ("perplexity/teacher_incorrect", batch.teacher_logprobs, batch.routes.incorrect),
    ):
        scored = [float(logprobs[i].mean()) for i in batch.members(mask) if i in logprobs]
        metrics.mean(name, -sum(scored), len(scored))


def _entropies(metrics: StepMetrics, batch: Batch) -> None:
    """Mean over responses of the entropy per token, nats, at each side's temperature."""
    for name, entropy, mask in (
        ("entropy/student_correct", batch.student_entropy, batch.routes.correct),
        ("entropy/student_incorrect", batch.student_entropy, batch.routes.incorrect),
        ("entropy/teacher_incorrect", batch.teacher_entropy, batch.routes.incorrect),
    ):
        known = [entropy[i] for i in batch.members(mask) if i in entropy]
        metrics.mean(name, sum(known), len(known))


def _log_spreads(weights: Tensor, group: Tensor) -> tuple[list[float], list[float]]:
    """Logarithms of each label's spread, and of its effective sample size over its number."""
    spreads, sizes = [], []
    for label in group.unique():
        inside = weights[(group == label) & (weights > 0)]
        if inside.numel() > 1:
            spreads.append(float((inside.max() / inside.min()).log()))
            shares = inside / inside.sum()
            sizes.append(-float((shares.square().sum() * inside.numel()).log()))
    return spreads, sizes


def _mismatch(metrics: StepMetrics, batch: Batch, config: Config) -> None:
    """Engine against trainer on the sampled tokens: |d log p|, |d p|, k3 of KL(engine || trainer).

    And the share of tokens whose importance weight is cut off at objective.tis_clip; where
    parameters older than these sampled, the effective sample size of the ratios over their number.
    Only where both speak of the same distribution: top-p and top-k renormalise the engine's.
    """
    if not samples_everything(config):
        return
    ours = batch.logprobs if config.objective.old_logprobs == "rollout" else None
    ours = _student_logprobs(batch) if ours is None else ours
    if not ours:
        return
    old = torch.cat([ours[i] for i in sorted(ours)])
    engine = torch.tensor([p for i in sorted(ours) for p in batch.rollouts[i].engine_logprobs])
    gap = old - engine
    metrics.mean("mismatch/mean_abs_logprob", float(gap.abs().sum()), gap.numel())
    metrics.mean(
        "mismatch/mean_abs_prob", float((old.exp() - engine.exp()).abs().sum()), gap.numel()
    )
    metrics.mean("mismatch/k3_kl", float((gap.expm1() - gap).sum()), gap.numel())
    if config.stale:
        ratio = gap.double().exp()
        size = float(ratio.sum() ** 2 / ratio.square().sum())
        metrics.mean("staleness/ratio_ess", size, gap.numel())
    if config.objective.tis_clip is not None:
        clipped = gap > math.log(config.objective.tis_clip)
        metrics.mean("mismatch/tis_clipped", float(clipped.sum()), gap.numel())


def finish(values: dict[str, float]) -> dict[str, float]:
    """Turn means of logarithms into geometric means, and drop losses that no algorithm here has."""
    done = {}
    for name, value in values.items():
        if name.startswith(("perplexity/", "weight/")) or name.endswith("/perplexity"):
            value = math.exp(min(value, 700.0))
        if name.startswith("loss/") and value == 0.0 and name != "loss/total":
            continue
        done[name] = value
    return done
