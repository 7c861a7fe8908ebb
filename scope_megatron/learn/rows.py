"""Everything the loss reads of a pack, laid out on its rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from scope_megatron.learn.batch import Batch
from scope_megatron.objective.loss import Clip, Known, Streams, token_losses
from scope_megatron.objective.packing import gather_from_sequences
from scope_megatron.types import PackedBatch


@dataclass(frozen=True)
class Part:
    """Rows that take the same way through the head: with the teacher's hidden states or without."""

    index: Tensor  # [n] int64, which of the pack's R rows
    positions: Tensor  # [n] int64, which of its T tokens
    targets: Tensor  # [n] int64
    streams: Streams  # [n]
    known: Known  # [n]
    clip: Clip
    teacher_hidden: Tensor | None  # [n, H_t/tp]; None: no divergence

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
    """The parts of a pack; together they hold each of its R rows once."""

    count: int  # R
    parts: list[Part]

    @classmethod
    def of(
        cls, pack: PackedBatch, batch: Batch, streams: Streams, clip: Clip, *, exact: bool
    ) -> Rows:
        """``exact``: responses with a weight in the kl term take a divergence."""
        laid, known = streams.lay_out(pack), _known(pack, batch, streams, clip, exact)
        kl = streams.kl if exact else None
        taught = [] if kl is None else [i for i in pack.members if bool(kl[i] != 0)]
        with_teacher = gather_from_sequences({i: i in taught for i in pack.members}, pack) > 0
        hidden = [batch.teacher_hidden[i] for i in taught if batch.teacher_hidden]

        def part(mask: Tensor, teacher_hidden: Tensor | None) -> Part:
            index = mask.nonzero().flatten()
            positions = pack.rows[index]
            its = laid.at(index)
            return Part(
                index=index,
                positions=positions,
                targets=pack.targets[positions],
                streams=its if teacher_hidden is not None or not exact else replace(its, kl=None),
                known=known.at(index),
                clip=clip,
                teacher_hidden=teacher_hidden,
            )

        parts = [part(with_teacher, torch.cat(hidden) if hidden else None)] if taught else []
        if len(taught) < len(pack.members) or not parts:  # the graph runs on every rank
            parts.append(part(~with_teacher, None))
        return cls(pack.num_rows, parts)


def _known(pack: PackedBatch, batch: Batch, streams: Streams, clip: Clip, exact: bool) -> Known:
    engine = {i: torch.tensor(batch.rollouts[i].engine_logprobs) for i in pack.members}
    return Known(
        old=_given(batch.old_logprobs, pack) if batch.old_logprobs else None,
        teacher=_given(batch.teacher_logprobs, pack)
        if streams.kl is not None and not exact
        else None,
        reference=_given(batch.reference_logprobs, pack) if streams.kl_ref is not None else None,
        engine=_given(engine, pack) if clip.tis is not None else None,
    )


def _given(scores: Mapping[int, Tensor], pack: PackedBatch) -> Tensor:
    """[R], zero for responses without a score."""
    return gather_from_sequences({index: scores.get(index) for index in pack.members}, pack)
