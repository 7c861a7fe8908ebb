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

Without given logp_old the current weights are the ones that sampled: logp_old = logp', and rho is 1
with the gradient of logp. That is so at the first update of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from scope_megatron.objective.packing import gather_from_sequences
from scope_megatron.types import PackedBatch

TERMS = ("mle", "kl", "pg", "nll", "kl_ref")


@dataclass(frozen=True)
class Streams:
    """A factor per response [B], or per row [R] once laid out, for each term of the loss.

    Normalised over the global batch: the loss is a plain sum. Zero: not in the term; None: nobody
    is. Iterating gives (term, factor) of those that are there.
    """

    mle: Tensor | None = None
    kl: Tensor | None = None
    pg: Tensor | None = None  # advantage x weight, either sign
    nll: Tensor | None = None
    kl_ref: Tensor | None = None

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name in TERMS:
            if (factor := getattr(self, name)) is not None:
                yield name, factor

    def active(self) -> Tensor:
        """[B] or [R] bool: what enters any term."""
        return torch.stack([factor != 0 for _, factor in self]).any(0)

    def map(self, function: Callable[[Tensor], Tensor]) -> Streams:
        """The function's result in place of every factor."""
        return Streams(**{name: function(factor) for name, factor in self})

    def lay_out(self, pack: PackedBatch) -> Streams:
        """[B] -> [R] on the rows of a pack."""
        return self.map(lambda factor: gather_from_sequences(factor, pack))

    def at(self, rows: Tensor | slice) -> Streams:
        """Of these rows alone."""
        return self.map(lambda factor: factor[rows])


@dataclass(frozen=True)
class Known:
    """Log-probabilities of the sampled tokens [R] that were known before the pass, or None."""

    old: Tensor | None = None  # of the weights that sampled; None: the current ones did
    teacher: Tensor | None = None  # needed by kl without a divergence
    reference: Tensor | None = None  # needed by kl_ref
    engine: Tensor | None = None  # as the engine reported them; needed by tis_clip

    def at(self, rows: Tensor | slice) -> Known:
        """Of these rows alone."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return Known(**{name: None if v is None else v[rows] for name, v in given.items()})


@dataclass(frozen=True)
class Clip:
    """What bounds the ratios.

    Raises ValueError for a bound out of range.
    """

    eps: float | None = None  # PPO's clip of rho; None: off
    tis: float | None = None  # C of the weight min(exp(old - engine), C); None: no such weight

    def __post_init__(self) -> None:
        if self.tis is not None and not self.tis > 0:
            raise ValueError(f"objective.tis_clip must be greater than 0, got {self.tis}")
        if self.eps is not None and not 0 < self.eps < 1:
            raise ValueError(f"algorithm.clip_eps must lie between 0 and 1, got {self.eps}")


def token_losses(
    logprob: Tensor,
    streams: Streams,
    known: Known,
    clip: Clip,
    divergence: Tensor | None = None,
) -> dict[str, Tensor]:
    """Per-token loss of each term that has a stream.

    Args:
        logprob: [R] of the current weights, with a gradient.
        streams: the factors [R]. They and ``known`` are detached.
        known: what was known of the tokens before.
        clip: the bounds of rho and of the importance weight.
        divergence: [R] exact divergence from the teacher, with a gradient; replaces sampled kl.

    Returns:
        term name -> [R]. A token whose stream is zero gives exactly zero, in value and in
        gradient, whatever its other inputs hold (NaN included).

    Raises:
        ValueError: an input that a stream needs is missing, or has another shape.
    """
    if logprob.dim() != 1:
        raise ValueError(f"logprob must be [rows], got {tuple(logprob.shape)}")
    tokens = _Tokens(logprob, known, clip, divergence)
    terms: dict[str, Tensor] = {}
    for name, factor in streams:
        _same_shape(logprob, factor, f"stream {name}")
        terms[name] = getattr(tokens, name)(factor.detach())
    return terms


@dataclass(frozen=True)
class _Tokens:
    """The inputs, read only where a stream is not zero."""

    logprob: Tensor
    known: Known
    clip: Clip
    divergence: Tensor | None

    def mle(self, factor: Tensor) -> Tensor:
        return self._surrogate(factor)

    def pg(self, factor: Tensor) -> Tensor:
        return self._surrogate(factor)

    def kl(self, factor: Tensor) -> Tensor:
        on = factor != 0
        if self.divergence is not None:
            return self._importance(on) * factor * self._read("divergence", self.divergence, on)
        gap = torch.where(on, self.logprob.detach(), 0.0)
        gap = gap - self._read("teacher", self.known.teacher, on)
        return self._surrogate(-factor * gap.detach(), on)

    def nll(self, factor: Tensor) -> Tensor:
        return -factor * torch.where(factor != 0, self.logprob, 0.0)

    def kl_ref(self, factor: Tensor) -> Tensor:
        on = factor != 0
        gap = self._read("reference", self.known.reference, on).detach()
        gap = gap - torch.where(on, self.logprob, 0.0)
        return factor * (torch.expm1(gap) - gap)

    def _surrogate(self, advantage: Tensor, on: Tensor | None = None) -> Tensor:
        """-tis rho A [R], pessimistically clipped when there is an eps."""
        on = advantage != 0 if on is None else on
        rho = torch.exp(torch.where(on, self.logprob, 0.0) - self._old(on))
        gain = rho * advantage
        if self.clip.eps is not None:
            clipped = rho.clamp(1.0 - self.clip.eps, 1.0 + self.clip.eps) * advantage
            gain = torch.minimum(gain, clipped)
        return -self._importance(on) * gain

    def _importance(self, on: Tensor) -> Tensor | float:
        """The truncated importance weight of trainer against engine."""
        if self.clip.tis is None:
            return 1.0
        engine = self._read("engine", self.known.engine, on)
        return torch.exp(self._old(on) - engine).clamp_max(self.clip.tis).detach()

    def _old(self, on: Tensor) -> Tensor:
        if self.known.old is None:
            return torch.where(on, self.logprob.detach(), 0.0)
        return self._read("old", self.known.old, on).detach()

    def _read(self, name: str, value: Tensor | None, on: Tensor) -> Tensor:
        if value is None:
            raise ValueError(f"a stream needs the {name} log-probabilities, which were not given")
        _same_shape(self.logprob, value, name)
        return torch.where(on, value, 0.0)


def _same_shape(logprob: Tensor, value: Tensor, name: str) -> None:
    if value.shape != logprob.shape:
        raise ValueError(f"{name} is {tuple(value.shape)} where logprob is {tuple(logprob.shape)}")
