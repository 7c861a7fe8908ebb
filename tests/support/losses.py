"""The token loss by keywords, as tests vary one input at a time."""

from __future__ import annotations

from torch import Tensor

from scope_megatron.objective import Clip, Known, Streams, token_losses


def policy_terms(
    logprob: Tensor,
    old_logprob: Tensor | None,
    streams: Streams,
    *,
    teacher_logprob: Tensor | None = None,
    divergence: Tensor | None = None,
    ref_logprob: Tensor | None = None,
    engine_logprob: Tensor | None = None,
    tis_clip: float | None = None,
    clip_eps: float | None = None,
    engine_old: bool = False,
) -> dict[str, Tensor]:
    known = Known(old_logprob, teacher_logprob, ref_logprob, engine_logprob)
    clip = Clip(clip_eps, tis_clip, engine_old=engine_old)
    return token_losses(logprob, streams, known, clip, divergence)


def policy_loss(
    logprob: Tensor,
    old_logprob: Tensor | None,
    streams: Streams,
    **inputs: Tensor | float | bool | None,
) -> Tensor:
    """The sum over terms and tokens; without any stream a zero with a gradient."""
    terms = policy_terms(logprob, old_logprob, streams, **inputs)
    return sum((term.sum() for term in terms.values()), logprob[:0].sum())
