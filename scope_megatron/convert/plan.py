"""What a conversion would write, from config.json alone."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from scope_megatron.convert.mapping import Mapping, Shape


def total_bytes(mapping: Mapping, dtype: torch.dtype) -> int:
    """Bytes of the model's weights, without Megatron's padding of the vocabulary."""
    return sum(map(math.prod, mapping.hf_shapes().values())) * dtype.itemsize


def describe(mapping: Mapping, dtype: torch.dtype, to_megatron: bool) -> Iterator[str]:
    """Lines: one per kind of tensor (its layers and experts counted), then the sums."""
    tensors = parameters = 0
    for rule in mapping.rules:
        if rule.duplicate:
            continue
        shapes = rule.operation.hf_shapes(mapping.sizes)
        written = list(zip(rule.hf, shapes, strict=True))
        if to_megatron:
            rows = sum(shape[0] for shape in shapes)
            written = [(rule.megatron[0], (rows, *shapes[0][1:]))]
        for name, shape in written:
            count = mapping.layers if "{layer}" in name else 1
            count *= mapping.sizes.experts if "{expert}" in name else 1
            tensors += count
            parameters += count * math.prod(shape)
            yield _line(name, shape, count, dtype)
    kind = str(dtype).removeprefix("torch.")
    size = parameters * dtype.itemsize / 2**30
    yield f"{mapping.architecture}: {tensors} tensors, {parameters:,} parameters, {kind}"
    yield f"{size:.2f} GiB to write"


def _line(name: str, shape: Shape, count: int, dtype: torch.dtype) -> str:
    size = count * math.prod(shape) * dtype.itemsize / 2**20
    return f"{count:6d} x {name}  {list(shape)}  {size:.1f} MiB"
