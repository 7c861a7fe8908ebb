"""The token loss that every algorithm shares: weight streams over a few per-token terms.

An algorithm only fills the streams (zero: the token is not in that term). With rho the ratio
exp(logp - logp_old), A the term's advantage and logp' the detached log-probability, the loss is the
sum over tokens of

    mle     A = mle                                  SCOPE's likelihood path (eq. 2)
    pg      A = pg                                   policy gradient, advantage times its weight
    kl      A = -kl (logp' - logp_teacher)           SCOPE's distillation path, sampled (eq. 3)
            each of them -tis min(rho A, clip(rho, 1 - eps, 1 + eps) A), or -tis rho A without eps
    kl      tis kl divergence                        instead, where a divergence is given
    nll     -nll logp                                supervised
    kl_ref  kl_ref (e^d - d - 1), d = logp_ref - logp    reference KL, the k3 estimator
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenStreams:
    """Per-token weights [T], already normalised over the global batch; None: no token has it."""

    mle: Tensor | None = None
    kl: Tensor | None = None
    pg: Tensor | None = None  # advantage x weight, either sign
    nll: Tensor | None = None
    kl_ref: Tensor | None = None


def policy_loss(
    logprob: Tensor,
    old_logprob: Tensor | None,
    streams: TokenStreams,
    **inputs: Tensor | float | None,
) -> Tensor:
    """The loss of one microbatch: the sum of :func:`policy_terms` over terms and tokens, a scalar.

    ``inputs`` are the keyword arguments of that function. The loss is a plain sum, since the
    streams carry the normalisation: add it over microbatches and ranks (where a framework averages
    over them, the caller multiplies it back). Without any stream it is a zero with a gradient.
    """
    terms = policy_terms(logprob, old_logprob, streams, **inputs)
    return sum((term.sum() for term in terms.values()), logprob[:0].sum())


def policy_terms(
    logprob: Tensor,
    old_logprob: Tensor | None,
    streams: TokenStreams,
    *,
    teacher_logprob: Tensor | None = None,
    divergence: Tensor | None = None,
    ref_logprob: Tensor | None = None,
    engine_logprob: Tensor | None = None,
    tis_clip: float | None = None,
    clip_eps: float | None = None,
) -> dict[str, Tensor]:
    """Per-token loss of each term that has a stream.

    Args:
        logprob: [T] of the current weights, with a gradient.
        old_logprob: [T] of the weights that sampled the tokens; needed by mle, pg and sampled kl.
        streams: the weights. They and all inputs but ``logprob`` and ``divergence`` are detached.
        teacher_logprob: [T] of the sampled tokens under the teacher; needed by sampled kl.
        divergence: [T] exact divergence from the teacher, with a gradient; replaces sampled kl.
        ref_logprob: [T] under the reference model; needed by kl_ref.
        engine_logprob: [T] as the engine reported them; needed by ``tis_clip``.
        tis_clip: C of the truncated importance weight min(exp(old - engine), C); None: off.
        clip_eps: PPO's clip of rho; None: off.

    Returns:
        term name -> [T]. A token whose stream is zero gives exactly zero, in value and in
        gradient, whatever its other inputs hold (NaN included).

    Raises:
        ValueError: an input that a stream needs is missing, or has another shape.
    """
    _check(logprob, tis_clip, clip_eps)
    given = {
        "old_logprob": old_logprob,
        "teacher_logprob": teacher_logprob,
        "divergence": divergence,
        "ref_logprob": ref_logprob,
        "engine_logprob": engine_logprob,
    }
    tokens = _Tokens(logprob, given, tis_clip, clip_eps)
    terms: dict[str, Tensor] = {}
    for name in ("mle", "kl", "pg", "nll", "kl_ref"):
        weight = getattr(streams, name)
        if weight is not None:
            _same_shape(logprob, weight, f"stream {name}")
            terms[name] = getattr(tokens, name)(weight.detach())
    return terms


@dataclass(frozen=True)
class _Tokens:
    """The inputs, read only where a stream is not zero."""

    logprob: Tensor
    given: dict[str, Tensor | None]
    tis_clip: float | None
    clip_eps: float | None

    def mle(self, weight: Tensor) -> Tensor:
        return self._surrogate(weight, "mle")

    def pg(self, weight: Tensor) -> Tensor:
        return self._surrogate(weight, "pg")

    def kl(self, weight: Tensor) -> Tensor:
        on = weight != 0
        if self.given["divergence"] is not None:
            return self._tis(on, "kl") * weight * self._read("divergence", on, "kl")
        gap = torch.where(on, self.logprob.detach(), 0.0) - self._read("teacher_logprob", on, "kl")
        return self._surrogate(-weight * gap.detach(), "kl", on)

    def nll(self, weight: Tensor) -> Tensor:
        return -weight * torch.where(weight != 0, self.logprob, 0.0)

    def kl_ref(self, weight: Tensor) -> Tensor:
        on = weight != 0
        gap = self._read("ref_logprob", on, "kl_ref").detach()
        gap = gap - torch.where(on, self.logprob, 0.0)
        return weight * (torch.expm1(gap) - gap)

    def _surrogate(self, advantage: Tensor, name: str, on: Tensor | None = None) -> Tensor:
        """-tis rho A, pessimistically clipped when there is a clip_eps [T]."""
        on = advantage != 0 if on is None else on
        old = self._read("old_logprob", on, name).detach()
        rho = torch.exp(torch.where(on, self.logprob, 0.0) - old)
        gain = rho * advantage
        if self.clip_eps is not None:
            clipped = rho.clamp(1.0 - self.clip_eps, 1.0 + self.clip_eps) * advantage
            gain = torch.minimum(gain, clipped)
        return -self._tis(on, name) * gain

    def _tis(self, on: Tensor, name: str) -> Tensor | float:
        if self.tis_clip is None:
            return 1.0
        old, engine = (self._read(key, on, name) for key in ("old_logprob", "engine_logprob"))
        return torch.exp(old - engine).clamp_max(self.tis_clip).detach()

    def _read(self, key: str, on: Tensor, name: str) -> Tensor:
        value = self.given[key]
        if value is None:
            raise ValueError(f"the {name} stream needs {key}, which was not given")
        _same_shape(self.logprob, value, key)
        return torch.where(on, value, 0.0)


def _check(logprob: Tensor, tis_clip: float | None, clip_eps: float | None) -> None:
    if logprob.dim() != 1:
        raise ValueError(f"logprob must be [tokens], got {tuple(logprob.shape)}")
    if tis_clip is not None and not tis_clip > 0:
        raise ValueError(f"objective.tis_clip must be greater than 0, got {tis_clip}")
    if clip_eps is not None and not 0 < clip_eps < 1:
        raise ValueError(f"algorithm.clip_eps must lie between 0 and 1, got {clip_eps}")


def _same_shape(logprob: Tensor, value: Tensor, name: str) -> None:
    if value.shape != logprob.shape:
        raise ValueError(f"{name} is {tuple(value.shape)} where logprob is {tuple(logprob.shape)}")
