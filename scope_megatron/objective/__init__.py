"""The training objective: pure tensor code that gets process groups as arguments.

routing       which path a response takes
perplexity    weights from perplexities (eq. 4 and 5)
normalize     a weight per sequence -> a factor per token, by global denominators
loss          the token loss all algorithms share
packing       sequences laid end to end, values carried back and forth
head/         log-probabilities and divergences over a vocabulary cut over ranks
"""

from __future__ import annotations

from scope_megatron.objective.head.hidden import (
    FusedLoss,
    fused_logprob,
    fused_logprob_and_divergence,
    fused_loss,
    fused_scores,
)
from scope_megatron.objective.head.logits import (
    Scores,
    vocab_parallel_divergence,
    vocab_parallel_logprob,
    vocab_parallel_logprob_and_divergence,
    vocab_parallel_scores,
)
from scope_megatron.objective.head.shard import Shard
from scope_megatron.objective.head.spec import Divergence, Kernel, Spec
from scope_megatron.objective.loss import Clip, Known, Streams, token_losses
from scope_megatron.objective.normalize import (
    Normalization,
    Totals,
    local_totals,
    per_group,
    sequence_token_weights,
)
from scope_megatron.objective.packing import (
    build,
    gather_from_sequences,
    pack,
    scatter_to_sequences,
)
from scope_megatron.objective.perplexity import WeightMode, student_weights, teacher_weights
from scope_megatron.objective.routing import Routes, route

__all__ = [
    "Clip",
    "Divergence",
    "FusedLoss",
    "Kernel",
    "Known",
    "Normalization",
    "Routes",
    "Scores",
    "Shard",
    "Spec",
    "Streams",
    "Totals",
    "WeightMode",
    "build",
    "fused_logprob",
    "fused_logprob_and_divergence",
    "fused_loss",
    "fused_scores",
    "gather_from_sequences",
    "local_totals",
    "pack",
    "per_group",
    "route",
    "scatter_to_sequences",
    "sequence_token_weights",
    "student_weights",
    "teacher_weights",
    "token_losses",
    "vocab_parallel_divergence",
    "vocab_parallel_logprob",
    "vocab_parallel_logprob_and_divergence",
    "vocab_parallel_scores",
]
