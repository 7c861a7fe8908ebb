"""Tensors and bytes that a conversion would write, estimated from config.json alone."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from scope_megatron.convert.mapping import Mapping, Shape
from scope_megatron.family import ModelShape


def check_layout(shape: ModelShape, tensor: int, pipeline: int, expert: int) -> None:
    """ValueError (naming the option and the sizes) when the model cannot be cut like that."""
    divided = shape.divided()
    layers = divided.pop("num_hidden_layers")
    checks = [("--tp", tensor, name, size) for name, size in divided.items()]
    checks.append(("--pp", pipeline, "num_hidden_layers", layers))
    if shape.experts:
        checks.append(("--ep", expert, "the number of experts,", shape.experts))
    elif expert > 1:
        raise ValueError(f"--ep {expert}: {shape.architecture} has no experts; leave it out")
    for option, ranks, name, size in checks:
        if size % ranks:
            raise ValueError(f"{option} {ranks} does not divide {name} {size}; give a divisor")


def rank_bytes(
    mapping: Mapping, dtype: torch.dtype, tensor: int, pipeline: int, expert: int
) -> int:
    """About the bytes of weights of one rank: norms are counted as cut, stages as equal."""
    dense = experts = 0
    for rule in mapping.rules:
        per_expert = "{expert}" in rule.hf[0]
        for shape in rule.hf_shapes(mapping.sizes):
            count = mapping.layers if "{layer}" in rule.hf[0] else 1
            size = count * math.prod(shape) * dtype.itemsize
            if per_expert:
                experts += size * mapping.sizes.experts
            elif not rule.duplicate:
                dense += size
    return (dense + experts // expert) // (tensor * pipeline)


def total_bytes(mapping: Mapping, dtype: torch.dtype) -> int:
    """Bytes of the model's weights, without Megatron's padding of the vocabulary."""
    return sum(map(math.prod, mapping.hf_shapes().values())) * int(dtype.itemsize)


def describe(mapping: Mapping, dtype: torch.dtype, to_megatron: bool) -> Iterator[str]:
    """Lines: one per kind of tensor (its layers and experts counted), then the sums."""
    tensors = parameters = 0
    for rule in mapping.rules:
        if rule.duplicate:
            continue
        shapes = rule.hf_shapes(mapping.sizes)
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
