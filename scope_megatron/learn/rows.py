"""Everything the loss reads of a pack, laid out on its rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from scope_megatron.learn.batch import Batch
from scope_megatron.objective.loss import Clip, Known, Streams, token_losses
from scope_megatron.objective.packing import gather_from_sequences
from scope_megatron.parallel.context import own_rows
from scope_megatron.parallel.topology import Topology
from scope_megatron.types import PackedBatch


@dataclass(frozen=True)
class Part:
    """Rows that take the same way through the head: with the teacher's hidden states or without."""

    index: Tensor  # [n] int64, which of the pack's R rows
    positions: Tensor  # [n] int64, which of the tokens that this rank has
    targets: Tensor  # [n] int64
    streams: Streams  # [n]
    known: Known  # [n]
    clip: Clip
    teacher_hidden: Tensor | None  # [n, H_t/tp]; None: no divergence
    teacher: int = 0  # whose they are

    def losses(
        self, logprob: Tensor, divergence: Tensor | None, rows: slice = slice(None)
    ) -> dict[str, Tensor]:
        """Per-token loss of each term, of these rows."""
        return token_losses(
            logprob, self.streams.at(rows), self.known.at(rows), self.clip, divergence
        )

    def total(
        self, logprob: Tensor, divergence: Tensor | None, rows: slice = slice(None)
    ) -> Tensor:
        """The loss; the log-probability is in its graph even where no token has a weight."""
        terms = self.losses(logprob, divergence, rows)
        return sum((term.sum() for term in terms.values()), (logprob * 0.0).sum())


@dataclass(frozen=True)
class Rows:
    """The parts of a pack; together they hold each row once that this rank computes."""

    count: int  # R
    own: Tensor  # [r] int64, which of the R rows this rank computes
    parts: list[Part]

    @classmethod
    def of(
        cls,
        pack: PackedBatch,
        batch: Batch,
        streams: Streams,
        clip: Clip,
        topology: Topology,
        taught_by: Callable[[int], int] | None,
    ) -> Rows:
        """``taught_by``: responses with a weight in the kl term take a divergence, from the teacher
        with this number; None: none is taken."""
        own, places = own_rows(pack, topology)
        exact = taught_by is not None
        laid, known = streams.lay_out(pack), _known(pack, batch, streams, clip, exact)

        def part(members: list[int], teacher: int | None) -> Part:
            mask = gather_from_sequences({i: i in members for i in pack.members}, pack) > 0
            hidden = [batch.teacher_hidden[i] for i in members if i in batch.teacher_hidden]
            teacher_hidden = torch.cat(hidden) if hidden and teacher is not None else None
            chosen = mask[own]
            index = own[chosen]
            its = laid.at(index)
            if teacher_hidden is not None and len(own) < len(mask):
                teacher_hidden = teacher_hidden[mask.cumsum(0)[index] - 1]
            return Part(
                index=index,
                positions=places[chosen],
                targets=pack.targets[pack.rows[index]],
                streams=its if teacher_hidden is not None or not exact else replace(its, kl=None),
                known=known.at(index),
                clip=clip,
                teacher_hidden=teacher_hidden,
                teacher=teacher or 0,
            )

        taught = _taught(pack, streams.kl, taught_by)
        parts = [part(members, number) for number, members in taught.items()]
        others = [i for i in pack.members if not any(i in members for members in taught.values())]
        if others or not parts:  # the graph runs on every rank
            parts.append(part(others, None))
        return cls(pack.num_rows, own, parts)


def _taught(
    pack: PackedBatch, kl: Tensor | None, taught_by: Callable[[int], int] | None
) -> dict[int, list[int]]:
    """The members that take a divergence, by the number of their teacher, ascending."""
    found: dict[int, list[int]] = {}
    if kl is None or taught_by is None:
        return found
    for index in pack.members:
        if bool(kl[index] != 0):
            found.setdefault(taught_by(index), []).append(index)
    return dict(sorted(found.items()))


def _known(pack: PackedBatch, batch: Batch, streams: Streams, clip: Clip, exact: bool) -> Known:
    engine = {i: torch.tensor(batch.rollouts[i].engine_logprobs) for i in pack.members}
    return Known(
        old=_given(batch.old_logprobs, pack) if batch.old_logprobs else None,
        teacher=_given(batch.target_logprobs or batch.teacher_logprobs, pack)
        if streams.pull is not None or (streams.kl is not None and not exact)
        else None,
        reference=_given(batch.reference_logprobs, pack) if streams.kl_ref is not None else None,
        engine=_given(engine, pack) if clip.tis is not None else None,
    )


def _given(scores: Mapping[int, Tensor], pack: PackedBatch) -> Tensor:
    """[R], zero for responses without a score."""
    return gather_from_sequences({index: scores.get(index) for index in pack.members}, pack)
