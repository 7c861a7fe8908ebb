"""Settings of the loss head: built once from the configuration and passed down unchanged."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Kernel = Literal["auto", "torch", "triton"]
Divergence = Literal["reverse_kl", "forward_kl", "jsd", "topk", "entropy_kl"]
TopkOf = Literal["teacher", "student", "union", "intersection"]

DIVERGENCES = ("reverse_kl", "forward_kl", "jsd", "topk", "entropy_kl")
KERNELS = ("auto", "torch", "triton")


@dataclass(frozen=True)
class Spec:
    """The request of every function of the loss head.

    ``logits.py`` has the formulas. Each function reads the fields that concern it: a
    log-probability knows no divergence, a divergence no target.
    """

    temperature: float = 1.0  # divides the student's logits, > 0
    teacher_temperature: float = 1.0  # divides the teacher's logits, > 0
    divergence: Divergence | None = None  # None: no teacher is read
    beta: float = 0.5  # jsd: the teacher's share of the mixture, strictly between 0 and 1
    topk: int = 64  # topk: tokens, at most the vocabulary
    topk_of: TopkOf = "teacher"  # topk: whose best tokens
    topk_tail: bool = False  # topk: all other tokens are one more, instead of renormalising
    entropy_threshold: float = 0.8  # entropy_kl: of the teacher, nats
    chunk: int | None = None  # most tokens worked on at once; None: as fits the function and device
    kernel: Kernel = "auto"  # who computes, see kernels.py
    entropy: bool = False  # also the entropy of the student's distribution (not with a divergence)
    best: int = 0  # scoring alone: also so many likeliest tokens, with their log-probabilities
    # the gradient is written over the logits, which saves T * W; any other use of the logits in
    # the same graph that needs their values then raises
    inplace_backward: bool = False
    # the forward may overwrite the logits already, which saves the backward an exponential for
    # each; nobody may read them afterwards. Log-probabilities alone; implies inplace_backward
    inplace_forward: bool = False
    # from hidden states: sum their gradient over the group (not where a gather's backward does)
    reduce_hidden: bool = True

    @property
    def dense(self) -> bool:
        """Whether the teacher's whole row is read (all divergences but topk)."""
        return self.divergence not in (None, "topk")

    @property
    def with_entropy(self) -> bool:
        """Whether the entropy is computed: it was asked for, and no teacher is read."""
        return self.entropy and self.divergence is None

    @property
    def overwrites(self) -> bool:
        """Whether the logits' memory may take their gradient."""
        return self.inplace_backward or self.inplace_forward

    def best_columns(self, vocab_size: int) -> int:
        """Numbers per token that ``best`` asks for: a token's number and log-probability each."""
        return 2 * min(self.best, vocab_size)

    def at(self, temperature: float) -> Spec:
        """The same at another temperature."""
        return replace(self, temperature=temperature)

    def alone(self) -> Spec:
        """The same without a teacher."""
        return replace(self, divergence=None)
