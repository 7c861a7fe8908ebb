"""The token loss that every algorithm shares: weight streams over a few per-token terms.

An algorithm only fills the streams (zero: the token is not in that term). With rho the ratio
exp(logp - logp_old), A the term's advantage and logp' the detached log-probability, the loss is the
sum over tokens of

    mle     A = mle                                  SCOPE's likelihood path (eq. 2)
    pg      A = pg                                   policy gradient, advantage times its weight
    kl      A = -kl (logp' - logp_teacher)           SCOPE's distillation path, sampled (eq. 3)
            each of them -tis min(rho A, clip(rho, 1 - eps, 1 + high) A), or -tis rho A without
            eps; with dual c, never less than c A where A is negative
    kl      kl divergence                            instead, where a divergence is given: given
            what came before, it does not depend on the token that was sampled, nor on its ratio
    nll     -tis nll logp                            supervised
    kl_ref  tis kl_ref (e^d - d - 1), d = logp_ref - logp    reference KL, the k3 estimator
    pull    tis pull (logp_teacher - logp)                   the sampled token up, by a gate in pull

Without given logp_old the current weights are the ones that sampled: logp_old = logp', and rho is 1
with the gradient of logp. That is so at the first update of a batch.

tis is 1, or with a bound C the truncated importance weight min(exp(logp_old - logp_engine), C).
Where the engine's log-probabilities are themselves taken for logp_old, that ratio is rho: there rho
is min(exp(logp' - logp_engine), C) in value, with the gradient of rho logp, and no tis comes before
it; in terms without rho the same value is tis. At a first update all three are one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from scope_megatron.objective.packing import gather_from_sequences
from scope_megatron.types import PackedBatch

TERMS = ("mle", "kl", "pg", "nll", "kl_ref", "pull")


@dataclass(frozen=True)
class Streams:
    """A factor per response [B], or per row [R] once laid out, for each term of the loss.

    Normalised over the global batch: the loss is a plain sum. Zero: not in the term; None: nobody
    is. Iterating gives (term, factor) of those that are there. ``tokens``: of a term, by response,
    what multiplies the factor at each of its tokens [length]; a response that is absent has 1.
    """

    mle: Tensor | None = None
    kl: Tensor | None = None
    pg: Tensor | None = None  # advantage x weight, either sign
    nll: Tensor | None = None
    kl_ref: Tensor | None = None
    pull: Tensor | None = None
    tokens: Mapping[str, Mapping[int, Tensor]] = field(default_factory=dict)

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name in TERMS:
            if (factor := getattr(self, name)) is not None:
                yield name, factor

    def active(self) -> Tensor:
        """[B] or [R] bool: what enters any term."""
        return torch.stack([factor != 0 for _, factor in self]).any(0)

    def lay_out(self, pack: PackedBatch) -> Streams:
        """[B] -> [R] on the rows of a pack, the multipliers of tokens worked in."""
        return Streams(**{name: self._rows(name, factor, pack) for name, factor in self})

    def _rows(self, name: str, factor: Tensor, pack: PackedBatch) -> Tensor:
        rows = gather_from_sequences(factor, pack)
        if not (given := self.tokens.get(name)):
            return rows
        return rows * gather_from_sequences({i: given.get(i) for i in pack.members}, pack, fill=1.0)

    def scaled(self, scales: Mapping[str, float | Tensor]) -> Streams:
        """Each term's factor times a number of its own, or times one per response [B]."""
        return replace(self, **{name: factor * scales[name] for name, factor in self})

    def at(self, rows: Tensor | slice) -> Streams:
        """Of these rows alone."""
        return Streams(**{name: factor[rows] for name, factor in self})


@dataclass(frozen=True)
class Known:
    """Log-probabilities of the sampled tokens [R] that were known before the pass, or None."""

    old: Tensor | None = None  # of the weights that sampled; None: the current ones did
    teacher: Tensor | None = None  # needed by pull, and by kl without a divergence
    reference: Tensor | None = None  # needed by kl_ref
    engine: Tensor | None = None  # as the engine reported them; needed by tis_clip

    def at(self, rows: Tensor | slice) -> Known:
        """Of these rows alone."""
        given = {one.name: getattr(self, one.name) for one in fields(self)}
        return Known(**{name: None if v is None else v[rows] for name, v in given.items()})


@dataclass(frozen=True)
class Clip:
    """How ratios are bounded, and against which weights the sampled gap is taken.

    Raises ValueError for a bound out of range.
    """

    eps: float | None = None  # PPO's clip of rho; None: off
    tis: float | None = None  # C of the importance weight against the engine; None: no such weight
    high: float | None = None  # its upper side (clip-higher, arXiv 2503.14476); None: eps
    dual: float | None = None  # c of dual clip (arXiv 1912.09729); None: off
    old_gap: bool = False  # sampled kl: logp_old - logp_teacher, not logp' - logp_teacher
    engine_old: bool = False  # the old log-probabilities are the engine's own: tis bounds rho

    def __post_init__(self) -> None:
        if self.tis is not None and not self.tis > 0:
            raise ValueError(f"objective.tis_clip must be greater than 0, got {self.tis}")
        if self.eps is not None and not 0 < self.eps < 1:
            raise ValueError(f"algorithm.clip_eps must lie between 0 and 1, got {self.eps}")
        if self.high is not None and not self.high > 0:
            raise ValueError(f"algorithm.clip_high must be greater than 0, got {self.high}")
        if self.dual is not None and not self.dual > 1:
            raise ValueError(f"algorithm.clip_dual must be greater than 1, got {self.dual}")

    def gain(self, rho: Tensor, advantage: Tensor) -> Tensor:
        """rho A, pessimistically clipped when there is an eps."""
        gain = rho * advantage
        if self.eps is None:
            return gain
        high = self.eps if self.high is None else self.high
        gain = torch.minimum(gain, rho.clamp(1.0 - self.eps, 1.0 + high) * advantage)
        if self.dual is None:
            return gain
        return torch.where(advantage < 0, torch.maximum(gain, self.dual * advantage), gain)


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
            return factor * self._read("divergence", self.divergence, on)
        gap = self._old(on) if self.clip.old_gap else self._own(on)
        gap = gap - self._read("teacher", self.known.teacher, on)
        return self._surrogate(-factor * gap.detach(), on)

    def nll(self, factor: Tensor) -> Tensor:
        on = factor != 0
        return -self._importance(on) * factor * self._own(on)

    def kl_ref(self, factor: Tensor) -> Tensor:
        on = factor != 0
        gap = self._read("reference", self.known.reference, on).detach() - self._own(on)
        return self._importance(on) * factor * (torch.expm1(gap) - gap)

    def pull(self, factor: Tensor) -> Tensor:
        on = factor != 0
        gap = self._read("teacher", self.known.teacher, on).detach() - self._own(on)
        return self._importance(on) * factor * gap

    def _surrogate(self, advantage: Tensor, on: Tensor | None = None) -> Tensor:
        """-tis rho A [R], clipped as ``Clip.gain`` says."""
        on = advantage != 0 if on is None else on
        own, tis = self._own(on), self._importance(on)
        if self.clip.engine_old and self.clip.tis is not None:  # what is cut at C is rho
            return -self.clip.gain(tis * torch.exp(own - own.detach()), advantage)
        return -tis * self.clip.gain(torch.exp(own - self._old(on)), advantage)

    def _importance(self, on: Tensor) -> Tensor | float:
        """The truncated importance weight of trainer against engine."""
        if self.clip.tis is None:
            return 1.0
        engine = self._read("engine", self.known.engine, on)
        ours = self._own(on) if self.clip.engine_old else self._old(on)
        return torch.exp(ours - engine).clamp_max(self.clip.tis).detach()

    def _own(self, on: Tensor) -> Tensor:
        return torch.where(on, self.logprob, 0.0)

    def _old(self, on: Tensor) -> Tensor:
        if self.known.old is None:
            return self._own(on).detach()
        return self._read("old", self.known.old, on).detach()

    def _read(self, name: str, value: Tensor | None, on: Tensor) -> Tensor:
        if value is None:
            raise ValueError(f"a stream needs the {name} log-probabilities, which were not given")
        _same_shape(self.logprob, value, name)
        return torch.where(on, value, 0.0)


def _same_shape(logprob: Tensor, value: Tensor, name: str) -> None:
    if value.shape != logprob.shape:
        raise ValueError(f"{name} is {tuple(value.shape)} where logprob is {tuple(logprob.shape)}")
