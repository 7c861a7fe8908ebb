"""Numbers of a prompt's group, from its verdicts alone."""

from __future__ import annotations

import torch
from torch import Tensor

from scope_megatron.learn.batch import Batch


def group_advantages(batch: Batch) -> Tensor:
    """[B] (R_i - mean R) / (std R + 1e-6) over the judged responses of each group, 0 for others.

    The reward is 1 on the correct path and 0 on the incorrect one: a truncated response counts as
    its route says.
    """
    routed = batch.routes.routed.float()
    rewards = batch.routes.correct.float()
    groups = int(batch.group.max()) + 1 if len(batch) else 0

    def total(values: Tensor) -> Tensor:
        return torch.zeros(groups).index_add(0, batch.group, values)[batch.group]

    count = total(routed).clamp_min(1)
    mean = total(rewards * routed) / count
    variance = total((rewards - mean) ** 2 * routed) / count
    return (rewards - mean) / (variance.sqrt() + 1e-6) * routed
