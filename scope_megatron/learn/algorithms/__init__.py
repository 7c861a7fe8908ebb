"""The algorithms: each only says which weight every response's tokens get in which term.

A stream is a factor per response (zero: not in the term), normalised over the global batch, and
where an algorithm weighs tokens one by one, a multiplier for each token of the responses held here.
The trainer lays it out on the tokens and knows nothing of the algorithm behind it. Factors are of
the whole global batch, so every rank computes the same. Formulas: docs/algorithms.md.

weighed      what an algorithm gives, and from weights to factors
scope        SCOPE, its ablations, and the constant signal in the teacher's place
baselines    opd, grpo, kd
hybrids      kdrl, rlsd, sdar, srpo
groups       numbers of a prompt's group: advantages, filters, pass rates
tokens       multipliers of single tokens in the teacher's term
registry     every algorithm by its name, and the switches around it
"""

from __future__ import annotations

from scope_megatron.learn.algorithms.groups import group_advantages, kept_routes
from scope_megatron.learn.algorithms.registry import ALGORITHMS, pack_streams, weigh
from scope_megatron.learn.algorithms.weighed import Algorithm, Weighed

__all__ = [
    "ALGORITHMS",
    "Algorithm",
    "Weighed",
    "group_advantages",
    "kept_routes",
    "pack_streams",
    "weigh",
]
