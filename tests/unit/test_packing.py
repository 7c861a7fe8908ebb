from __future__ import annotations

import random

import pytest
import torch

from scope_megatron.objective import build, gather_from_sequences, pack, scatter_to_sequences
from scope_megatron.objective.packing import filler

SEQUENCES = [
    ((11, 12, 13), (14, 15)),
    ((21,), (22, 23, 24)),
    ((31, 32), ()),
    ((41, 42), (43,)),
]


def test_pack_by_hand():
    assert pack([6, 4, 4, 3, 3], 10) == [[0, 1], [2, 3, 4]]
    assert pack([2, 9, 2, 2], 10) == [[1], [0, 2, 3]]
    assert pack([1, 1, 1, 1], 100) == [[0, 1, 2, 3]]
    assert pack([], 10) == []


def test_pack_keeps_the_first_fit_when_dealing_overflows():
    """6+4 and 3+3+2+2 fill two bins of 10; dealing to the emptiest bin would overflow one."""
    assert [sum([6, 4, 3, 3, 2, 2][i] for i in b) for b in pack([6, 4, 3, 3, 2, 2], 10)] == [10, 10]


def test_pack_is_a_balanced_partition_within_the_budget():
    generator = random.Random(0)
    for _ in range(50):
        lengths = [generator.randint(1, 300) for _ in range(generator.randint(1, 80))]
        bins = pack(lengths, 1000)
        assert sorted(index for members in bins for index in members) == list(range(len(lengths)))
        loads = [sum(lengths[i] for i in members) for members in bins]
        assert max(loads) <= 1000
        assert loads == sorted(loads, reverse=True)
        assert len(bins) <= 11 / 9 * -(-sum(lengths) // 1000) + 1  # first-fit decreasing's bound
        assert bins == pack(lengths, 1000)
    loads = [sum(members) for members in pack([10] * 21, 100)]
    assert len(loads) == 3
    assert [len(members) for members in pack([10] * 21, 100)] == [7, 7, 7]  # not 10, 10, 1


def test_bins_come_in_multiples_where_sequences_suffice():
    assert pack([6, 4, 4, 3, 3], 10, 2) == [[0, 1], [2, 3, 4]]  # two already
    assert [len(members) for members in pack([5] * 6, 10, 2)] == [2, 2, 1, 1]  # not three
    assert pack([1, 1, 1, 1], 100, 2) == [[0, 2], [1, 3]]
    assert pack([7, 3], 100, 4) == [[0], [1]]  # fillers are for the rest
    assert pack([], 10, 2) == []


def test_a_sequence_longer_than_the_budget_names_the_setting():
    with pytest.raises(ValueError, match=r"sequence 1 has 11 tokens.*train\.microbatch_tokens"):
        pack([3, 11], 10)
    with pytest.raises(ValueError, match="no tokens"):
        pack([0], 10)


def test_build_by_hand():
    got = build(SEQUENCES, [1, 0, 2], pad_multiple=4)
    assert got.tokens.tolist() == [21, 22, 23, 24, 11, 12, 13, 14, 15, 31, 32, 0]
    assert got.targets.tolist() == [22, 23, 24, 0, 12, 13, 14, 15, 0, 32, 0, 0]
    assert got.position_ids.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4, 0, 1, 0]
    assert got.rows.tolist() == [0, 1, 2, 6, 7]
    assert (got.counts, got.bounds) == ([3, 2, 0], [0, 4, 9, 11, 12])
    assert got.cu_seqlens.tolist() == [0, 4, 9, 11, 12]
    assert got.cu_seqlens.dtype == torch.int32
    assert (got.max_seqlen, got.members, got.num_tokens) == (5, [1, 0, 2], 12)


def test_padding_has_no_targets_and_can_be_the_longest_sequence():
    got = build(SEQUENCES, [3], pad_multiple=16)
    assert got.tokens.tolist() == [41, 42, 43] + [0] * 13
    assert got.targets.tolist() == [42, 43] + [0] * 14
    assert got.position_ids.tolist()[3:] == list(range(13))
    assert got.max_seqlen == 13
    assert build(SEQUENCES, [3]).cu_seqlens.tolist() == [0, 3]
    assert build(SEQUENCES, [3], 3).cu_seqlens.tolist() == [0, 3]  # already a multiple


def test_build_refusals():
    with pytest.raises(ValueError, match="sequence 0 has an empty prompt"):
        build([((), (1, 2))], [0])
    with pytest.raises(ValueError, match="at least one sequence"):
        build(SEQUENCES, [])
    with pytest.raises(ValueError, match="sequence 1 has token 7, outside the vocabulary of 7"):
        build([((1, 2), (3,)), ((4,), (5, 7))], [0, 1], vocab_size=7)
    with pytest.raises(ValueError, match="sequence 0 has token -1, outside the vocabulary of 7"):
        build([((-1, 2), (3,))], [0], vocab_size=7)
    build([((1, 2), (6,))], [0], vocab_size=7)
    with pytest.raises(ValueError, match="at most once"):
        build(SEQUENCES, [1, 1])


def test_scatter_returns_each_target_to_its_response():
    packed = build(SEQUENCES, [2, 1, 0], pad_multiple=8)
    parts = scatter_to_sequences(packed.targets[packed.rows], packed)
    assert {index: part.tolist() for index, part in parts.items()} == {
        2: [],
        1: [22, 23, 24],
        0: [14, 15],
    }
    with pytest.raises(ValueError, match="values for a pack"):
        scatter_to_sequences(packed.targets, packed)


def test_gather_inverts_scatter_and_spreads_numbers():
    packed = build(SEQUENCES, [2, 1, 0], pad_multiple=8)
    values = torch.rand(packed.num_rows, dtype=torch.float64)
    back = gather_from_sequences(scatter_to_sequences(values, packed), packed)
    torch.testing.assert_close(back, values, rtol=0, atol=0)
    spread = gather_from_sequences(torch.tensor([2.0, 3.0, 4.0, 5.0]), packed)
    assert spread.tolist() == [3, 3, 3, 2, 2]
    mixed = gather_from_sequences([7.0, [1, 2, 3], None, None], packed, fill=-1.0)
    assert mixed.tolist() == [1, 2, 3, 7, 7]
    absent = gather_from_sequences({2: None, 1: None, 0: [1.0, 2.0]}, packed, fill=torch.nan)
    assert absent.isnan().tolist() == [True] * 3 + [False] * 2


def test_gather_refuses_what_does_not_fit():
    packed = build(SEQUENCES, [1, 0])
    with pytest.raises(ValueError, match="sequence 1: 2 values for 3 response tokens"):
        gather_from_sequences([[1.0, 2.0], [1.0, 2.0]], packed)
    with pytest.raises(ValueError, match="no value for sequence 1"):
        gather_from_sequences({0: [1.0, 2.0]}, packed)


def test_a_filler_runs_along_and_holds_nothing() -> None:
    pack = filler(4)
    assert pack.num_tokens == 4 and pack.cu_seqlens.tolist() == [0, 4] and pack.members == []
    assert pack.num_rows == 0 and pack.counts == []
    assert scatter_to_sequences(torch.zeros(0), pack) == {}
    assert gather_from_sequences({}, pack).tolist() == []
