"""Placement: rows of a Megatron shard -> rows of one engine rank's parameters."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import torch
from torch import Tensor

from scope_megatron.convert.mapping import FusedQKV, Rule, Shape, Vocabulary
from scope_megatron.family import ModelShape


class PlanError(ValueError):
    """The engine's parameters are not laid out as the plan expects."""


@dataclass(frozen=True)
class EngineLayout:
    """Names and shapes of the parameters of one engine rank; all ranks have the same."""

    size: int  # tensor-parallel size of the engine
    shapes: dict[str, Shape]  # of every parameter, by name
    fused: dict[str, list[str]]  # "qkv_proj": ["q_proj", "k_proj", "v_proj"], ...


@dataclass(frozen=True)
class Copy:
    """Rows of a tensor rank's shard -> rows of an engine parameter, from a column on."""

    shard: int | None  # tensor rank; None: the same on every rank
    row: int
    rows: int
    width: int
    target: str
    to_row: int
    to_column: int
    column: int = 0  # first of ``width`` columns, where a copy has not all of the shard's


def copies_of(
    rule: Rule,
    names: Sequence[str],
    shape: Shape,
    sizes: ModelShape,
    tensor: int,
    engine_rank: int,
    layout: EngineLayout,
    *,
    any_columns: bool = False,
) -> list[Copy]:
    """What an engine rank takes of a parameter that is cut into ``tensor`` shards of ``shape``.

    Copies are in the order of the shards' rows. Raises :class:`PlanError` where an engine parameter
    is missing, or has another shape, or some of a shard's columns are wanted without the others
    (unless ``any_columns``).
    """
    width, cut = math.prod(shape[1:]), rule.operation.cut
    if cut is None:
        target = _place(names[0], layout)
        if layout.shapes[target] != shape:
            raise PlanError(f"{target} has shape {layout.shapes[target]}, not {shape}")
        return [Copy(None, 0, shape[0], width, target, 0, 0)]
    # The number of every row (cut 0) or column (cut 1), as the table puts it into the full tensors.
    extent = shape[cut]
    numbers = torch.arange(tensor * extent)
    numbers = numbers.view(tensor, *(extent if d == cut else 1 for d in range(len(shape))))
    copies = []
    offsets: dict[str, int] = {}
    parts = rule.operation.to_hf(numbers, sizes)
    names = names if len(names) == len(parts) else list(names) * len(parts)  # one holds them all
    for name, full in zip(names, parts, strict=True):
        target = _place(name, layout)
        first, count = _share(rule, full.numel(), sizes, engine_rank, layout, target)
        offset = offsets.setdefault(target, 0)
        offsets[target] += count
        for start, stop in _runs(full.flatten()[first : first + count], extent):
            shard, row = divmod(int(full.flatten()[first + start]), extent)
            if cut == 0:
                copies.append(Copy(shard, row, stop - start, width, target, offset + start, 0))
            else:
                if (row, stop - start) != (0, extent) and not any_columns:
                    raise PlanError(f"{name} is cut within a shard's columns")
                count = stop - start
                copies.append(Copy(shard, 0, shape[0], count, target, 0, offset + start, row))
    return sorted(copies, key=lambda copy: (copy.row, copy.shard))


def uncovered(copies: list[Copy], layout: EngineLayout, engine_rank: int, vocab: int) -> str | None:
    """The first engine parameter that the copies do not fill exactly; padding rows do not count."""
    filled = dict.fromkeys(layout.shapes, 0)
    for copy in copies:
        filled[copy.target] += copy.rows * copy.width
    for name, shape in layout.shapes.items():
        rows = real_rows(name, layout, engine_rank, vocab)
        if filled[name] != rows * math.prod(shape[1:]):
            return name
    return None


def real_rows(name: str, layout: EngineLayout, engine_rank: int, vocab: int) -> int:
    """Rows of an engine parameter that are not the engine's padding of the vocabulary."""
    rows = layout.shapes[name][0]
    if name.rpartition(".")[0].endswith(("embed_tokens", "lm_head")):
        return min(rows, max(0, vocab - engine_rank * rows))
    return rows


def _place(name: str, layout: EngineLayout) -> str:
    """The engine's parameter that holds a Hugging Face tensor (by itself, or fused)."""
    module, _, kind = name.rpartition(".")
    parent, _, leaf = module.rpartition(".")
    target = name
    for whole, members in layout.fused.items():
        if leaf in members:
            target = f"{parent}.{whole}.{kind}"
    if target not in layout.shapes:
        raise PlanError(f"the engine has no parameter {target}")
    return target


def _share(
    rule: Rule, extent: int, sizes: ModelShape, rank: int, layout: EngineLayout, target: str
) -> tuple[int, int]:
    """First row (or column) of the full tensor that the engine rank holds, and how many."""
    if isinstance(rule.operation, Vocabulary):  # padded by the engine, in its own way
        rows = layout.shapes[target][0]
        first = min(rank * rows, extent)
        return first, min(rows, extent - first)
    unit = sizes.head_dim if isinstance(rule.operation, FusedQKV) else 1
    units = extent // unit
    if units % layout.size and layout.size % units:
        raise PlanError(f"{target}: {layout.size} engine ranks do not divide {units}")
    # With fewer key heads than ranks, neighbours share one.
    return rank * units // layout.size * unit, max(1, units // layout.size) * unit


def _runs(numbers: Tensor, extent: int) -> list[tuple[int, int]]:
    """(start, stop) of the stretches that count up by one within one shard."""
    if not numbers.numel():
        return []
    breaks = (numbers.diff() != 1) | (numbers[1:] % extent == 0)
    edges = [0, *(breaks.nonzero().flatten() + 1).tolist(), numbers.numel()]
    return list(pairwise(edges))


Wanted = tuple[tuple[int, ...], ...] | None  # per engine rank its source ranks; None: its own


def stretches(copies: list[list[Copy]]) -> Iterator[tuple[int, int, Wanted]]:
    """(first row, rows, who wants them from whom) for the rows that any engine rank takes."""
    if any(copy.shard is None for each in copies for copy in each):
        yield 0, copies[0][0].rows, None
        return
    edges = {edge for each in copies for c in each for edge in (c.row, c.row + c.rows)}
    spans = [(low, high, _wanted(copies, low, high)) for low, high in pairwise(sorted(edges))]
    for wanted, group in groupby(spans, key=lambda span: span[2]):
        same = list(group)
        if any(wanted):
            yield same[0][0], same[-1][1] - same[0][0], wanted


def _wanted(copies: list[list[Copy]], low: int, high: int) -> tuple[tuple[int, ...], ...]:
    return tuple(
        tuple(
            sorted(
                {
                    c.shard
                    for c in each
                    if c.shard is not None and c.row < high and low < c.row + c.rows
                }
            )
        )
        for each in copies
    )
