"""Group-normalised perplexity weights (SCOPE, arXiv 2604.10688, eq. 4 and 5).

With PPL(y|x) = exp(-mean log-probability of the response tokens), the paper's weights are softmaxes
over the responses of one prompt that take the same path:

    student, correct responses:    w_i ~ PPL_S(y_i|x)^(+1/tau) = exp(-mean_logprob_i / tau)
    teacher, incorrect responses:  w_i ~ PPL_T(y_i|x)^(-1/tau) = exp(+mean_logprob_i / tau)

They are computed in log space, so that a mean log-probability of -50 does not overflow.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

WeightMode = Literal["perplexity", "uniform", "reversed"]
_SIGN = {"perplexity": 1.0, "uniform": 0.0, "reversed": -1.0}


def student_weights(
    mean_logprob: Tensor,
    group: Tensor,
    correct: Tensor,
    tau: float = 1.0,
    *,
    mode: WeightMode = "perplexity",
) -> Tensor:
    """Weights of the correct responses: the student's high perplexity weighs more (eq. 4).

    Args:
        mean_logprob: [B] mean log-probability (nats per token) of each response under the weights
            that sampled it. Only members of the path are read.
        group: [B] integer label of each response's prompt; any labels, in any order.
        correct: [B] bool, the members of the path.
        tau: temperature of the softmax, > 0.
        mode: ``perplexity`` (eq. 4), ``uniform`` (1/|path|) or ``reversed`` (low perplexity first).

    Returns:
        [B] weights: zero outside the path, summing to 1 inside each group that has a member.
        float32, or float64 for float64 input; no gradient.

    Raises:
        ValueError: tau <= 0, unknown mode, wrong shapes or dtypes, a member that is not finite.
    """
    return _path_weights(mean_logprob, group, correct, tau, mode, sign=-1.0, name="student")


def teacher_weights(
    mean_logprob: Tensor,
    group: Tensor,
    incorrect: Tensor,
    tau: float = 1.0,
    *,
    mode: WeightMode = "perplexity",
) -> Tensor:
    """Weights of the incorrect responses: the teacher's low perplexity weighs more (eq. 5).

    ``mean_logprob`` [B] is the teacher's, on the student's tokens. ``reversed`` puts high teacher
    perplexity first. Everything else is as in :func:`student_weights`.
    """
    return _path_weights(mean_logprob, group, incorrect, tau, mode, sign=1.0, name="teacher")


@torch.no_grad()
def _path_weights(
    mean_logprob: Tensor,
    group: Tensor,
    member: Tensor,
    tau: float,
    mode: str,
    *,
    sign: float,
    name: str,
) -> Tensor:
    _check(mean_logprob, group, member, tau, mode, name)
    dtype = torch.float64 if mean_logprob.dtype == torch.float64 else torch.float32
    bad = member & ~torch.isfinite(mean_logprob)
    if bool(bad.any()):
        raise ValueError(
            f"the {name}'s mean log-probability is not finite for response(s) "
            f"{bad.nonzero().flatten().tolist()[:8]}: mask responses that could not be scored "
            "before they are weighted"
        )
    scale = sign * _SIGN[mode] / tau
    score = torch.where(member, mean_logprob.to(dtype), 0.0) * scale
    return _group_softmax(score, group, member)


def _check(
    mean_logprob: Tensor, group: Tensor, member: Tensor, tau: float, mode: str, name: str
) -> None:
    if not tau > 0:
        raise ValueError(f"objective.tau must be greater than 0, got {tau}")
    if mode not in _SIGN:
        raise ValueError(f"objective.{name}_weight must be one of {', '.join(_SIGN)}; got {mode!r}")
    if mean_logprob.dim() != 1 or not mean_logprob.shape == group.shape == member.shape:
        raise ValueError(
            "mean_logprob, group and the path must be one-dimensional and of one length, got "
            f"{tuple(mean_logprob.shape)}, {tuple(group.shape)} and {tuple(member.shape)}"
        )
    if group.is_floating_point() or member.dtype != torch.bool:
        raise ValueError(
            f"group must be integer and the path bool, got {group.dtype} and {member.dtype}"
        )


def _group_softmax(score: Tensor, group: Tensor, member: Tensor) -> Tensor:
    """Softmax of ``score`` [B] over the members of each group; zero for the others."""
    labels, index = torch.unique(group, return_inverse=True)
    score = score.masked_fill(~member, -torch.inf)
    top = score.new_full((labels.numel(),), -torch.inf)
    top = top.scatter_reduce(0, index, score, "amax")
    # a group without members has top = -inf; its nan is not selected
    mass = torch.where(member, torch.exp(score - top[index]), 0.0)
    total = torch.zeros_like(top).index_add(0, index, mass)
    return torch.where(member, mass / total[index], 0.0)
