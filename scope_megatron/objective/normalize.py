"""From a weight per sequence to a factor per token, with denominators of the global batch.

The denominators are sums over all microbatches and data-parallel ranks, so that the loss (a plain
sum of factor x token loss) does not change when the same batch is cut into other microbatches or
spread over other ranks. Whole groups must sit on one rank: the size of a path inside its group is
counted locally.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from scope_megatron.objective.loss import TERMS
from scope_megatron.objective.routing import Routes

Normalization = Literal["token_mean", "prompt_sum", "sequence_mean", "microbatch_mean"]


@dataclass(frozen=True)
class Totals:
    """Counts over a batch. Add them, or all-reduce ``values`` (sum), to get the global batch's."""

    values: Tensor  # [3] float64: routed response tokens, routed sequences, prompts

    def __add__(self, other: Totals) -> Totals:
        return Totals(self.values + other.values)

    @property
    def tokens(self) -> Tensor:
        return self.values[0]

    @property
    def sequences(self) -> Tensor:
        return self.values[1]

    @property
    def prompts(self) -> Tensor:
        return self.values[2]


def local_totals(
    routes: Routes, group: Tensor, response_lengths: Tensor, *, filtered: bool = False
) -> Totals:
    """Count this rank's batch. ``group`` and ``response_lengths`` are [B] integers.

    A prompt counts whether or not any of its responses is routed, but for one that was left out
    (``filtered``: such prompts have no routed response); a routed response counts with its response
    tokens. Each prompt must be on one rank only, or it counts twice.
    """
    _check_shapes(routes, group, response_lengths)
    routed = routes.routed
    tokens = torch.where(routed, response_lengths, 0).sum()
    prompts = torch.unique(group[routed] if filtered else group).numel()
    counts = [tokens, routed.sum(), torch.tensor(prompts)]
    return Totals(torch.stack([count.to(group.device, torch.float64) for count in counts]))


def sequence_token_weights(
    weights: Tensor,
    routes: Routes,
    group: Tensor,
    response_lengths: Tensor,
    normalization: Normalization,
    totals: Totals,
) -> Tensor:
    """The factor that multiplies every response token of each sequence.

    With w~_i = |path of i in its group| * w_i (mean 1 over a path):

        token_mean     w~_i / routed tokens of the global batch
        prompt_sum     w_i / prompts of the global batch (eq. 6 of the paper, literally)
        sequence_mean  w~_i / (tokens of i) / routed sequences of the global batch
        microbatch_mean  w~_i; :func:`microbatch_scales` has the rest

    Args:
        weights: [B] weights that sum to 1 inside each group and path. Both paths may share the
            tensor (they are disjoint); a path left at zero gets the factor zero.
        routes: the paths; masked responses get the factor zero.
        group: [B] integer label of each response's prompt.
        response_lengths: [B] integer response tokens.
        normalization: one of the four above.
        totals: :func:`local_totals` summed over the global batch.

    Returns:
        [B] factors, of the weights' dtype. All zero when nothing is routed.
    """
    _check_shapes(routes, group, response_lengths)
    if weights.shape != group.shape:
        raise ValueError(f"weights are {tuple(weights.shape)}, group is {tuple(group.shape)}")
    size = _path_size(routes, group)
    share = torch.where(routes.routed, weights, 0.0).to(torch.float64)
    if normalization == "token_mean":
        factor = share * size / totals.tokens.clamp_min(1)
    elif normalization == "prompt_sum":
        factor = share / totals.prompts.clamp_min(1)
    elif normalization == "sequence_mean":
        factor = share * size / response_lengths.clamp_min(1) / totals.sequences.clamp_min(1)
    elif normalization == "microbatch_mean":
        factor = share * size
    else:
        raise ValueError(
            "objective.normalization must be token_mean, prompt_sum, sequence_mean or "
            f"microbatch_mean, got {normalization!r}"
        )
    return factor.to(weights.dtype)


def per_group(weights: Tensor, routes: Routes, group: Tensor, compared: Tensor) -> Tensor:
    """Weights that sum to 1 over a path among all responses that were ``compared``, as
    :func:`sequence_token_weights` reads them: their mean over a path of what was compared is what
    the mean over a path of a group is otherwise.

    Args:
        weights: [B] that sum to 1 over the responses of a path that share a label of ``compared``.
        routes: the paths.
        group: [B] integer label of each response's prompt.
        compared: [B] integer label; equal to ``group``, and the weights are returned.
    """
    if compared is group:
        return weights
    ratio = _path_size(routes, compared) / _path_size(routes, group).clamp_min(1)
    return (weights * ratio).to(weights.dtype)


def microbatch_scales(
    lengths: Sequence[int], correct: Sequence[bool], sequences: int
) -> dict[str, float]:
    """What the factors of one microbatch are multiplied with, by term: the published code's means.

    Likelihood terms (mle, nll) are means over the response tokens of the microbatch's correct
    responses, all others over all its response tokens; a microbatch of n responses weighs
    n / ``sequences``. The loss depends on how the batch is cut, as it does there.

    Args:
        lengths: response tokens of each response in the microbatch.
        correct: whether each is on the correct path.
        sequences: routed responses of the global batch.
    """
    weight = len(lengths) / max(1, sequences)
    every = weight / max(1, sum(lengths))
    right = sum(n for n, is_correct in zip(lengths, correct, strict=True) if is_correct)
    likelihood = weight / max(1, right)
    return {name: likelihood if name in ("mle", "nll") else every for name in TERMS}


def _path_size(routes: Routes, group: Tensor) -> Tensor:
    """[B] float64: the number of responses on the sequence's path inside its group."""
    labels, index = torch.unique(group, return_inverse=True)
    cell = 2 * index + routes.incorrect.to(index.dtype)
    count = torch.zeros(2 * labels.numel(), dtype=torch.float64, device=group.device)
    count = count.index_add(0, cell, routes.routed.to(torch.float64))
    return count[cell]


def _check_shapes(routes: Routes, group: Tensor, response_lengths: Tensor) -> None:
    if group.dim() != 1 or not routes.correct.shape == group.shape == response_lengths.shape:
        raise ValueError(
            "routes, group and response_lengths must be one-dimensional and of one length, got "
            f"{tuple(routes.correct.shape)}, {tuple(group.shape)} and "
            f"{tuple(response_lengths.shape)}"
        )
