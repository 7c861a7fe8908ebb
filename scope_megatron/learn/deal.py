"""Deal of responses to data-parallel replicas: balanced by arithmetic, not by prompt.

Replicas sample whole groups, and the longest response of a replica would keep all others waiting.
After grading every replica learns a few facts of every response, all compute the same deal from
them, and the responses travel. Weights need whole groups, but only one number per response: those
are exchanged, so groups may be torn apart. The result of a step does not depend on the deal.
"""

from __future__ import annotations

import heapq
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from scope_megatron.learn.batch import Batch, reward
from scope_megatron.objective.routing import Routes, route
from scope_megatron.parallel import platform
from scope_megatron.parallel.agree import all_max
from scope_megatron.parallel.topology import Topology
from scope_megatron.types import Rollout

_NO_VERDICT = -1.0


@dataclass(frozen=True)
class Arithmetic:
    """Estimated cost of a forward pass over one sequence of L tokens: L (1 + L / quadratic).

    ``quadratic`` is the length at which attention costs as much as the matrix products: a layer
    of hidden size h takes some 24 h^2 L operations in products and 2 h L^2 in causal attention.
    """

    quadratic: float

    @classmethod
    def of(cls, hidden_size: int) -> Arithmetic:
        return cls(quadratic=12.0 * hidden_size)

    def cost(self, tokens: Tensor) -> Tensor:
        """[B] float64, in units of one token's matrix products."""
        tokens = tokens.double()
        return tokens * (1.0 + tokens / self.quadratic)


def make_batch(
    rollouts: list[Rollout],
    truncated: Literal["incorrect", "mask"],
    topology: Topology,
    arithmetic: Arithmetic,
) -> Batch:
    """Route graded rollouts, whole groups side by side, and deal them (collective over replicas).

    Responses are numbered by prompt and sample as a single replica would number them.
    """
    everyone = _gathered(_facts(rollouts), topology)
    known = everyone[:, :, 0] >= 0
    each = int(everyone[:, :, 0].max()) + 1 if bool(known.any()) else 1
    replica, nth = _turns((known.sum(1) // each).tolist())
    table = everyone[replica[:, None], nth[:, None] * each + torch.arange(each)].flatten(0, 1)
    numbers = torch.arange(len(table)).view(-1, each)
    mine = numbers[replica == topology.dp_rank].flatten().tolist()
    verdicts = [None if r == _NO_VERDICT else float(r) for r in table[:, 1].tolist()]
    lengths = table[:, 3].long()
    routes = route(verdicts, (table[:, 2] > 0).tolist(), lengths.tolist(), truncated)
    held, imbalanced = dict(zip(mine, rollouts, strict=True)), 1.0
    if topology.dp_size > 1:
        cost = arithmetic.cost(table[:, 3] + table[:, 4])
        holders = deal(cost, routes, topology.dp_size)
        held = _exchange(held, holders, topology)
        imbalanced = imbalance(cost, holders, routes.routed, topology.dp_size)
    return Batch(
        rollouts=held,
        group=torch.arange(len(table)) // each,
        lengths=lengths,
        routes=routes,
        imbalance=imbalanced,
    )


def _turns(groups: list[int]) -> tuple[Tensor, Tensor]:
    """[prompts] whose group comes next, and which of its own: the replicas take turns. They may
    have different numbers of groups, where some were left for the next step."""
    turns = sorted((n, replica) for replica, count in enumerate(groups) for n in range(count))
    nth, replica = torch.tensor(turns, dtype=torch.int64).reshape(-1, 2).unbind(1)
    return replica, nth


def deal(cost: Tensor, routes: Routes, replicas: int) -> Tensor:
    """[B] the replica of each response: longest first, each to the least loaded.

    Incorrect responses go first, so that the teacher's passes over them are balanced, then the
    others fill up what is left. Responses on no path cost nothing and go where they fit.
    """
    holders = torch.zeros(len(cost), dtype=torch.int64)
    heap = [(0.0, replica) for replica in range(replicas)]
    for mask, weight in ((routes.incorrect, 1.0), (routes.correct, 1.0), (routes.masked, 0.0)):
        members = mask.nonzero().flatten().tolist()
        for index in sorted(members, key=lambda i: (-float(cost[i]), i)):
            load, replica = heap[0]
            holders[index] = replica
            heapq.heapreplace(heap, (load + weight * float(cost[index]), replica))
    return holders


def imbalance(cost: Tensor, holders: Tensor, counted: Tensor, replicas: int) -> float:
    """Largest over mean cost of a replica's counted responses; 1 is perfect, and for none."""
    loads = torch.zeros(replicas, dtype=torch.float64)
    loads.index_add_(0, holders, torch.where(counted, cost, 0.0))
    mean = float(loads.mean())
    return float(loads.max()) / mean if mean > 0 else 1.0


def _facts(rollouts: Sequence[Rollout]) -> Tensor:
    """[b, 5] float64: sample, reward or _NO_VERDICT, finished, response and prompt tokens."""
    rows = [
        (
            float(r.sample),
            _NO_VERDICT if (value := reward(r)) is None else value,
            float(r.finished),
            float(len(r.token_ids)),
            float(len(r.prompt.token_ids)),
        )
        for r in rollouts
    ]
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, 5)


def _gathered(facts: Tensor, topology: Topology) -> Tensor:
    """[data, most, 5] of every replica; a row that a replica has not is -1."""
    if topology.dp_size == 1:
        return facts[None]
    most = int(all_max([len(facts)], topology.dp_group)[0])
    local = facts.new_full((most, facts.shape[1]), -1.0)
    local[: len(facts)] = facts
    local = local.to(platform.device())
    out = local.new_empty((topology.dp_size, *local.shape))
    dist.all_gather_into_tensor(out.flatten(0, 1), local, group=topology.dp_group)
    return out.cpu()


def _exchange(held: dict[int, Rollout], holders: Tensor, topology: Topology) -> dict[int, Rollout]:
    """Send every response to its holder; returns what this replica holds then."""
    parcels: list[list[tuple[int, Rollout]]] = [[] for _ in range(topology.dp_size)]
    for index, rollout in held.items():
        parcels[int(holders[index])].append((index, rollout))
    kept, parcels[topology.dp_rank] = parcels[topology.dp_rank], []
    device = platform.device()
    data = [torch.frombuffer(bytearray(pickle.dumps(p)), dtype=torch.uint8) for p in parcels]
    sizes = torch.tensor([len(part) for part in data], device=device)
    incoming = torch.empty_like(sizes)
    dist.all_to_all_single(incoming, sizes, group=topology.dp_group)
    sent, received = sizes.tolist(), incoming.tolist()
    flat = torch.empty(sum(received), dtype=torch.uint8, device=device)
    outgoing = torch.cat(data).to(device)
    dist.all_to_all_single(flat, outgoing, received, sent, group=topology.dp_group)
    for part in flat.cpu().split(received):
        kept += pickle.loads(part.numpy().tobytes())
    return dict(sorted(kept, key=lambda item: item[0]))
