"""Responses go to where a frozen model in its own layout scores them; what it says comes back.

A block of ranks (``parallel/second.py``) holds whole replicas of the student and whole replicas of
the model. Inside it the tokens of all responses are told to all ranks, each replica of the model
scores its share of them, and log-probabilities go back by value. Last hidden states, of which an
exact divergence needs every element, go from the ranks of the model's last stage to those of the
student's last stage alone, each of which gets the columns that it keeps.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from scope_megatron.parallel import platform
from scope_megatron.parallel.agree import from_all
from scope_megatron.parallel.second import RankPlace, create_block
from scope_megatron.parallel.topology import Topology
from scope_megatron.types import Prompt, Rollout

if TYPE_CHECKING:
    from scope_megatron.learn.head import Model
    from scope_megatron.learn.scorer import Scored, Scorer
    from scope_megatron.objective.head.spec import Spec


@dataclass(frozen=True)
class _Trip:
    """The responses of a block: their tokens, who asked and who scores."""

    rollouts: dict[int, Rollout]
    asked_by: dict[int, int]  # the student's replica
    scored_by: dict[int, int]  # the model's replica

    def list_of(self, replica: int) -> list[int]:
        return [index for index, scorer in self.scored_by.items() if scorer == replica]


class Travel:
    """The way between the student's layout ``home`` and a model's ``away`` (collective over all
    ranks); the model's states are [T, ``width``] of ``dtype``."""

    def __init__(self, home: Topology, away: Topology, dtype: torch.dtype, width: int) -> None:
        self._home, self._away, self._dtype, self._width = home, away, dtype, width
        self._block = create_block(home, away, home.timeout_s)
        self._places = [(RankPlace.of(r, home), RankPlace.of(r, away)) for r in self._block.ranks]
        self._scorers = sorted({away_.data for _, away_ in self._places})
        place = self._block.ranks.index(home.rank)
        self._speaks_at_home = self._first(place, 0)
        self._speaks_away = self._first(place, 1)

    def _first(self, place: int, side: int) -> bool:
        """Whether a rank of the block is the first of its replica of one side."""
        mine = self._places[place][side].data
        return all(places[side].data != mine for places in self._places[:place])

    def score(
        self,
        scorer: Scorer,
        model: Model,
        rollouts: Mapping[int, Rollout],
        members: Sequence[int],
        spec: Spec,
        *,
        logprobs: bool = True,
        hidden: bool = False,
    ) -> Scored:
        """As ``Scorer.score`` of ``members``, which this replica of the student holds; ``scorer``
        works in the model's layout (collective over the block)."""
        trip = self._set_out(rollouts, members)
        mine = trip.list_of(self._away.dp_rank)
        scored = scorer.score(model, trip.rollouts, mine, spec, logprobs=logprobs, hidden=hidden)
        told = {name: values for name, values in vars(scored).items() if name != "hidden"}
        back, wanted = type(scored)(), set(members)
        for part in from_all(told if self._speaks_away else None, self._block.group):
            for name, values in (part or {}).items():
                getattr(back, name).update({i: v for i, v in values.items() if i in wanted})
        if hidden:
            for position in range(max(len(trip.list_of(r)) for r in self._scorers)):
                back.hidden |= self._carry(trip, position, scored.hidden)
        return back

    def _set_out(self, rollouts: Mapping[int, Rollout], members: Sequence[int]) -> _Trip:
        """Tell all ranks of the block what there is to score, and deal it by length."""
        tokens = None
        if self._speaks_at_home:
            tokens = {
                i: (array("i", rollouts[i].prompt.token_ids), array("i", rollouts[i].token_ids))
                for i in members
            }
        found: dict[int, Rollout] = {}
        asked_by: dict[int, int] = {}
        for (at_home, _), parcel in zip(
            self._places, from_all(tokens, self._block.group), strict=True
        ):
            for index, (prompt, response) in (parcel or {}).items():
                given = Prompt(index, tuple(prompt), "")
                found[index] = Rollout(given, 0, response.tolist(), [], finished=True)
                asked_by[index] = at_home.data
        lengths = {index: found[index].length for index in sorted(found)}
        return _Trip(found, asked_by, deal_by_length(lengths, self._scorers))

    def _carry(self, trip: _Trip, position: int, scored: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """The states of each scoring replica's response at ``position``, to where they are kept:
        [length, columns of this rank], on the student's last stage."""
        device, item = platform.device(), self._dtype.itemsize
        me = self._block.ranks.index(self._home.rank)
        parcels = []
        for to, _ in enumerate(self._places):
            for index, theirs, _ in self._piece(trip, position, me, to):
                parcels.append((to, scored[index][:, theirs].contiguous().view(torch.uint8)))
        sent = [sum(p.numel() for at, p in parcels if at == to) for to in range(len(self._places))]
        pieces = [
            (source, piece)
            for source in range(len(self._places))
            for piece in self._piece(trip, position, source, me)
        ]
        sizes = [0] * len(self._places)
        for source, (index, columns, _) in pieces:
            rows = len(trip.rollouts[index].token_ids)
            sizes[source] = rows * (columns.stop - columns.start) * item
        flat = torch.empty(sum(sizes), dtype=torch.uint8, device=device)
        nothing = flat.new_empty(0)
        outgoing = torch.cat([nothing, *(p.reshape(-1) for _, p in parcels)])
        dist.all_to_all_single(flat, outgoing, sizes, sent, group=self._block.group)
        found: dict[int, Tensor] = {}
        mine = _columns(self._width, self._home.tp_size, self._home.tp_rank)
        parts = flat.split(sizes)
        for source, (index, columns, ours) in pieces:
            rows = len(trip.rollouts[index].token_ids)
            if index not in found:
                shape = rows, mine.stop - mine.start
                found[index] = torch.empty(shape, dtype=self._dtype, device=device)
            part = parts[source].view(self._dtype).view(rows, columns.stop - columns.start)
            found[index][:, ours] = part
        return found

    def _piece(
        self, trip: _Trip, position: int, source: int, to: int
    ) -> Iterator[tuple[int, slice, slice]]:
        """(response, columns of the sender's, columns of the receiver's) that one rank of the block
        sends another, if it does."""
        away, home = self._places[source][1], self._places[to][0]
        if away.pipeline != self._away.pp_size - 1 or away.context:
            return
        listed = trip.list_of(away.data)
        if home.pipeline != self._home.pp_size - 1 or position >= len(listed):
            return
        theirs = _columns(self._width, self._away.tp_size, away.tensor)
        ours = _columns(self._width, self._home.tp_size, home.tensor)
        low, high = max(theirs.start, ours.start), min(theirs.stop, ours.stop)
        if trip.asked_by[listed[position]] == home.data and low < high:
            yield (
                listed[position],
                slice(low - theirs.start, high - theirs.start),
                slice(low - ours.start, high - ours.start),
            )


def deal_by_length(lengths: Mapping[int, int], replicas: Sequence[int]) -> dict[int, int]:
    """The replica that scores each response: the longest first, each to the least loaded."""
    heap = [(0, replica) for replica in replicas]
    found = {}
    for index in sorted(lengths, key=lambda i: (-lengths[i], i)):
        load, replica = heap[0]
        found[index] = replica
        heapq.heapreplace(heap, (load + lengths[index], replica))
    return dict(sorted(found.items()))


def _columns(width: int, parts: int, part: int) -> slice:
    """Those of one part, as ``tensor_split`` cuts."""
    size, more = divmod(width, parts)
    start = part * size + min(part, more)
    return slice(start, start + size + (part < more))
