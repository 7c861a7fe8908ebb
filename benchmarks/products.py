"""The matrix products of a training step and nothing else: what arithmetic alone takes."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn

Product = tuple[int, int, int]  # rows, inputs, outputs of y = x W^T


def products_of(learner: Any, batch: Any) -> tuple[list[Product], list[Product]]:
    """(differentiated, forward only): the student's and the teacher's, with their output heads.

    Bodies see every token of a pack, heads the rows of response tokens. Attention's own products
    over these short sequences are left out: they count for this project's overhead.
    """
    members = batch.members(batch.routes.routed)
    tokens = sum(len(batch.rollouts[i].prompt.token_ids) for i in members)
    rows = sum(len(batch.rollouts[i].token_ids) for i in members)
    student = shapes_of(learner.student.model, tokens + rows, rows)
    return student, shapes_of(learner.frozen[0].model, tokens + rows, rows)


def shapes_of(model: nn.Module, tokens: int, rows: int) -> list[Product]:
    """One forward pass's products with the parameters of ``model``."""
    layers = [
        (tokens, weight.shape[1], weight.shape[0])
        for name, weight in model.named_parameters()
        if weight.dim() == 2 and "embedding" not in name and "output_layer" not in name
    ]
    embedding = next(w for name, w in model.named_parameters() if "word_embeddings" in name)
    return [*layers, (rows, embedding.shape[1], embedding.shape[0])]


def time_products(differentiated: list[Product], forward: list[Product], block: int) -> float:
    """Seconds of them all, one after the other; ``block`` rows at a time where logits are made."""
    shapes = {*differentiated, *forward}
    operands = {shape: _operands(shape) for shape in shapes}
    started = time.perf_counter()
    for shape in forward:
        _multiply(*operands[shape], block, gradients=False)
    for shape in differentiated:
        _multiply(*operands[shape], block, gradients=True)
    return time.perf_counter() - started


def _operands(shape: Product) -> tuple[Tensor, Tensor]:
    rows, inputs, outputs = shape
    return torch.randn(rows, inputs), torch.randn(outputs, inputs)


def _multiply(x: Tensor, weight: Tensor, block: int, gradients: bool) -> None:
    """y = x W^T, then dx = y W and dW = y^T x; wide outputs in blocks of rows, as a head does."""
    step = block if weight.shape[0] > 16_384 else len(x)
    for part in x.split(step):
        y = part @ weight.T
        if gradients:
            y @ weight
            y.T @ part
