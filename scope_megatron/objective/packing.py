"""Sequences laid end to end into microbatches, and per-token values carried back and forth.

A sequence is (prompt tokens, response tokens). Row t of a pack predicts the sequence's token t+1,
so the rows of a response are the last prompt token up to the last but one token.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, chain

import torch
from torch import Tensor

from scope_megatron.types import PackedBatch

_Sequence = tuple[Sequence[int], Sequence[int]]  # prompt ids, response ids


def pack(lengths: Sequence[int], budget: int, together: int = 1) -> list[list[int]]:
    """Cut sequences into few microbatches of at most ``budget`` tokens and of similar size.

    First-fit decreasing finds the number of bins; the sequences are then dealt, longest first, to
    the emptiest bin. Where that overflows the budget the first-fit bins stand.

    Args:
        lengths: tokens of each sequence (prompt and response), each at least 1.
        budget: most tokens in one bin (``train.microbatch_tokens``).
        together: the number of bins is to be a multiple of this; it is where there are sequences
            enough and the first-fit bins do not stand.

    Returns:
        Bins of indices into ``lengths``: every index once, ascending inside a bin, the fullest
        bin first (a step that does not fit in memory fails at its start). Deterministic.

    Raises:
        ValueError: a sequence longer than the budget, or without tokens.
    """
    for index, length in enumerate(lengths):
        if length > budget:
            raise ValueError(
                f"sequence {index} has {length} tokens, more than train.microbatch_tokens = "
                f"{budget}: raise train.microbatch_tokens, or lower data.max_prompt_tokens or "
                "rollout.max_response_tokens"
            )
        if length < 1:
            raise ValueError(f"sequence {index} has no tokens")
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    bins = _first_fit(order, lengths, budget)
    count = min(len(bins) + -len(bins) % together, len(lengths))
    bins = _balanced(order, lengths, budget, count) or bins
    bins = [sorted(members) for members in bins]
    return sorted(bins, key=lambda members: (-sum(lengths[i] for i in members), members))


def _first_fit(order: list[int], lengths: Sequence[int], budget: int) -> list[list[int]]:
    bins: list[list[int]] = []
    room: list[int] = []
    for index in order:
        for place, free in enumerate(room):
            if lengths[index] <= free:
                bins[place].append(index)
                room[place] -= lengths[index]
                break
        else:
            bins.append([index])
            room.append(budget - lengths[index])
    return bins


def _balanced(
    order: list[int], lengths: Sequence[int], budget: int, count: int
) -> list[list[int]] | None:
    """Deal the sequences to ``count`` bins, each to the emptiest; None if one overflows."""
    bins: list[list[int]] = [[] for _ in range(count)]
    heap = [(0, place) for place in range(count)]
    for index in order:
        load, place = heap[0]
        if load + lengths[index] > budget:
            return None
        bins[place].append(index)
        heapq.heapreplace(heap, (load + lengths[index], place))
    return bins


def build(
    sequences: Sequence[_Sequence] | Mapping[int, _Sequence],
    members: Sequence[int],
    pad_multiple: int = 1,
    vocab_size: int | None = None,
) -> PackedBatch:
    """Lay the sequences named by ``members`` end to end.

    Args:
        sequences: all (prompt_ids, response_ids) of the batch; a prompt has at least one token.
        members: indices of the sequences in this pack, in order, without repetition.
        pad_multiple: T is padded up to a multiple of this with one dummy sequence of token 0,
            which has no member, no response rows, and its own entry in ``cu_seqlens``.
        vocab_size: of the model; here, on the host, nobody waits for the answer.

    Returns:
        A :class:`PackedBatch` on the CPU, its fields as that class describes them.

    Raises:
        ValueError: an empty prompt, no members, repeated members, or a token that is none.
    """
    if not members or len(set(members)) != len(members):
        raise ValueError("a pack needs at least one sequence, and each at most once")
    for index in members:
        if not sequences[index][0]:
            raise ValueError(f"sequence {index} has an empty prompt: nothing predicts its response")
    lengths = [len(sequences[index][0]) + len(sequences[index][1]) for index in members]
    counts = [len(sequences[index][1]) for index in members]
    tail = -sum(lengths) % pad_multiple
    ids = chain.from_iterable(chain(*sequences[index]) for index in members)
    tokens = torch.tensor([*ids, *([0] * tail)], dtype=torch.int64)
    if vocab_size is not None and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocab_size:
        raise ValueError(_outside(sequences, members, vocab_size))
    bounds = [0, *accumulate([*lengths, tail] if tail else lengths)]
    starts, ends = torch.tensor(bounds[:-1]), torch.tensor(bounds[1:])
    position = torch.arange(len(tokens)) - starts.repeat_interleave(ends - starts)
    has_next = torch.ones(len(tokens), dtype=torch.bool)
    has_next[ends - 1] = False
    has_next[bounds[len(members)] :] = False
    # a response of n tokens is predicted by the n rows before the sequence's last one
    spread, many = ends[: len(members)], torch.tensor(counts)
    within = torch.arange(int(many.sum())) - (many.cumsum(0) - many).repeat_interleave(many)
    return PackedBatch(
        tokens=tokens,
        targets=tokens.roll(-1).masked_fill(~has_next, 0),
        position_ids=position,
        rows=(spread - 1 - many).repeat_interleave(many) + within,
        cu_seqlens=torch.tensor(bounds, dtype=torch.int32),
        bounds=bounds,
        members=list(members),
        counts=counts,
    )


def _outside(
    sequences: Sequence[_Sequence] | Mapping[int, _Sequence], members: Sequence[int], size: int
) -> str:
    index, token = next(
        (i, token) for i in members for token in chain(*sequences[i]) if not 0 <= token < size
    )
    return f"sequence {index} has token {token}, outside the vocabulary of {size} tokens"


def filler(pad_multiple: int = 1) -> PackedBatch:
    """A pack without members, ``pad_multiple`` tokens long, for a rank that must run along."""
    pack = build([((0,) * pad_multiple, ())], [0])
    return replace(pack, members=[], counts=[])


def scatter_to_sequences(values: Tensor, pack: PackedBatch) -> dict[int, Tensor]:
    """Cut ``values`` [R, ...] of a pack's rows into each sequence's response tokens.

    Returns:
        sequence index -> [response tokens, ...], in the pack's order; empty for empty responses.
    """
    if values.shape[0] != pack.num_rows:
        raise ValueError(f"{values.shape[0]} values for a pack of {pack.num_rows} response tokens")
    return dict(zip(pack.members, values.split(pack.counts), strict=True))


def gather_from_sequences(
    per_sequence: Tensor | Sequence | Mapping, pack: PackedBatch, *, fill: float = 0.0
) -> Tensor:
    """Lay per-sequence values out on the rows of a pack: the inverse of the scatter.

    Args:
        per_sequence: indexed by sequence; each entry a number (repeated over the sequence's
            response tokens), a list or tensor with one number per response token, or None
            (absent: its rows get ``fill``). A [B] tensor is taken as one number per sequence.
        pack: the pack; only its members are read.
        fill: the value of absent sequences' rows.

    Returns:
        [R] on the pack's device, of the tensors' dtype (float32 for python numbers).

    Raises:
        ValueError: a member without an entry, or a list whose length is not its response's.
    """
    device = pack.rows.device
    if isinstance(per_sequence, Tensor):
        chosen = per_sequence[torch.tensor(pack.members, dtype=torch.int64)]
        return chosen.repeat_interleave(torch.tensor(pack.counts, dtype=torch.int64)).to(device)
    parts = []
    for index, count in zip(pack.members, pack.counts, strict=True):
        try:
            value = per_sequence[index]
        except LookupError:
            raise ValueError(f"no value for sequence {index} of the pack") from None
        value = torch.as_tensor(fill if value is None else value)
        value = value if value.is_floating_point() else value.float()
        if value.dim() == 1 and value.numel() != count:
            raise ValueError(
                f"sequence {index}: {value.numel()} values for {count} response tokens"
            )
        parts.append(value.expand(count))
    return (torch.cat(parts) if parts else torch.empty(0)).to(device)
