"""Every algorithm under the name that algorithm.name has for it."""

from __future__ import annotations

import torch
from torch import Tensor

from scope_megatron.learn.algorithms import baselines, scope
from scope_megatron.learn.algorithms.weighed import Algorithm
from scope_megatron.objective.routing import Routes


def _nothing(routes: Routes) -> Tensor:
    return torch.zeros_like(routes.masked)


def _incorrect(routes: Routes) -> Tensor:
    return routes.incorrect


def _routed(routes: Routes) -> Tensor:
    return routes.routed


ALGORITHMS: dict[str, Algorithm] = {
    "scope": Algorithm(scope.scope, frozen_scores=_incorrect),
    "opd": Algorithm(baselines.opd, frozen_scores=_routed),
    "grpo": Algorithm(baselines.grpo, frozen_scores=_routed),
    "kd": Algorithm(baselines.kd, frozen_scores=_nothing),
}
