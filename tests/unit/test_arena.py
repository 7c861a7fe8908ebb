"""Snapshots' memory: one piece, kept, with nothing of one tensor in another's."""

from __future__ import annotations

import torch

from scope_megatron.checkpoint.arena import ALIGNMENT, Arena

WANTED = {
    "weight": torch.randn(7, 3),
    "half": torch.randn(5).bfloat16(),
    "step": torch.tensor(3, dtype=torch.int64),
    "empty": torch.empty(0, 4),
    "turned": torch.randn(3, 8, dtype=torch.float64).t(),
}


def test_every_tensor_has_memory_of_its_own_in_one_block():
    copies = Arena().like(WANTED)
    for name, copy in copies.items():
        copy.copy_(WANTED[name])
    for name, copy in copies.items():
        assert copy.dtype == WANTED[name].dtype and copy.is_contiguous()
        assert torch.equal(copy, WANTED[name])
    blocks = {copy.untyped_storage().data_ptr() for copy in copies.values()}
    assert len(blocks) == 1
    held = copies["weight"].untyped_storage().nbytes()
    size = sum(tensor.numel() * tensor.element_size() for tensor in WANTED.values())
    assert size <= held <= size + len(WANTED) * ALIGNMENT


def test_the_memory_stays_and_grows():
    arena = Arena()
    first = arena.like({"a": torch.zeros(4)})
    again = arena.like({"a": torch.ones(4), "b": torch.ones(2)})
    assert again["a"] is first["a"]
    assert arena.like({"b": torch.ones(2)})["b"] is again["b"]
