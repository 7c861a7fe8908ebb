"""Factors per token: the three definitions by hand, and invariance to how the batch is cut."""

from __future__ import annotations

import itertools

import pytest
import torch

from scope_megatron.objective import (
    Routes,
    Totals,
    local_totals,
    route,
    sequence_token_weights,
    student_weights,
    teacher_weights,
)
from scope_megatron.objective.normalize import microbatch_scales

MODES = ["token_mean", "prompt_sum", "sequence_mean"]
# three prompts: 2 correct + 1 incorrect + 1 masked; all masked; 3 incorrect
GROUP = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2, 2])
LENGTHS = torch.tensor([4, 6, 5, 7, 3, 3, 2, 8, 1])
REWARDS = [1.0, 1.0, 0.0, None, None, None, 0.0, 0.0, 0.0]
LOGPROB = torch.linspace(-2.0, -0.1, 9, dtype=torch.float64)


def routes_of(rows: slice = slice(None)) -> Routes:
    return route(REWARDS[rows], [True] * len(REWARDS[rows]), LENGTHS[rows].tolist())


def factors(rows: slice, totals: Totals, mode: str) -> torch.Tensor:
    routes = routes_of(rows)
    weights = student_weights(LOGPROB[rows], GROUP[rows], routes.correct)
    weights = weights + teacher_weights(LOGPROB[rows], GROUP[rows], routes.incorrect)
    return sequence_token_weights(weights, routes, GROUP[rows], LENGTHS[rows], mode, totals)


def test_totals_count_routed_tokens_and_every_prompt():
    totals = local_totals(routes_of(), GROUP, LENGTHS)
    assert totals.values.tolist() == [4 + 6 + 5 + 2 + 8 + 1, 6, 3]


def test_definitions_by_hand():
    totals = local_totals(routes_of(), GROUP, LENGTHS)
    # the weights of the only pair of correct responses, from their definition
    pair = torch.softmax(-LOGPROB[:2], 0)
    got = {mode: factors(slice(None), totals, mode) for mode in MODES}
    torch.testing.assert_close(got["token_mean"][:2], 2 * pair / 26)
    torch.testing.assert_close(got["prompt_sum"][:2], pair / 3)
    torch.testing.assert_close(got["sequence_mean"][:2], 2 * pair / torch.tensor([4, 6]) / 6)
    for mode, one in {"token_mean": 1 / 26, "prompt_sum": 1 / 3, "sequence_mean": 1 / 30}.items():
        assert got[mode][2].item() == pytest.approx(one)  # alone on its path: weight 1
        assert got[mode][3:6].tolist() == [0, 0, 0]  # masked


@pytest.mark.parametrize(
    ("mode", "ratio"),
    [
        ("prompt_sum", 1.0),  # eq. 6: the weights of a path sum to 1, whatever its size
        ("token_mean", 1 / 7),
        ("sequence_mean", 1 / 7),
        ("microbatch_mean", 8 / 7),  # the published code: likelihood over correct tokens alone
    ],
)
def test_how_the_paths_weigh_where_one_of_eight_is_right(mode, ratio):
    """The correct path's factors over the incorrect path's, summed over tokens: what docs say."""
    group, lengths, right = (
        torch.zeros(8, dtype=torch.long),
        torch.full((8,), 5),
        [True] + 7 * [False],
    )
    routes = route([float(r) for r in right], [True] * 8, lengths.tolist())
    logprob = LOGPROB[:8]
    weights = student_weights(logprob, group, routes.correct)
    weights = weights + teacher_weights(logprob, group, routes.incorrect)
    totals = local_totals(routes, group, lengths)
    factor = sequence_token_weights(weights, routes, group, lengths, mode, totals) * lengths
    scales = dict.fromkeys(("mle", "kl"), 1.0)
    if mode == "microbatch_mean":
        scales = microbatch_scales(lengths.tolist(), right, 8)
    correct, incorrect = factor[:1].sum() * scales["mle"], factor[1:].sum() * scales["kl"]
    assert (correct / incorrect).item() == pytest.approx(ratio)


def test_uniform_weights_make_plain_means():
    """With w = 1/|path| token_mean and sequence_mean are means over the routed batch."""
    routes = routes_of()
    weights = student_weights(LOGPROB, GROUP, routes.correct, mode="uniform")
    weights = weights + teacher_weights(LOGPROB, GROUP, routes.incorrect, mode="uniform")
    totals = local_totals(routes, GROUP, LENGTHS)
    for mode in ("token_mean", "sequence_mean"):
        factor = sequence_token_weights(weights, routes, GROUP, LENGTHS, mode, totals)
        assert (factor * LENGTHS).sum().item() == pytest.approx(1.0)
        per_token = factor * (LENGTHS if mode == "sequence_mean" else 1)
        assert per_token[routes.routed].std().item() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cuts", [[0, 4, 9], [0, 6, 9], [0, 4, 6, 9]])
def test_cutting_the_batch_over_ranks_changes_nothing(mode, cuts):
    rows = [slice(a, b) for a, b in itertools.pairwise(cuts)]
    local = [local_totals(routes_of(r), GROUP[r], LENGTHS[r]) for r in rows]
    total = sum(local[1:], local[0])
    whole = factors(slice(None), local_totals(routes_of(), GROUP, LENGTHS), mode)
    parts = torch.cat([factors(r, total, mode) for r in rows])
    torch.testing.assert_close(parts, whole, rtol=1e-14, atol=0)


def test_a_batch_without_routes_weighs_nothing():
    routes = routes_of(slice(4, 6))
    totals = local_totals(routes, GROUP[4:6], LENGTHS[4:6])
    assert totals.values.tolist() == [0, 0, 1]
    for mode in MODES:
        assert factors(slice(4, 6), totals, mode).tolist() == [0, 0]


def test_refusals():
    totals = local_totals(routes_of(), GROUP, LENGTHS)
    with pytest.raises(ValueError, match=r"objective\.normalization"):
        factors(slice(None), totals, "mean")
    with pytest.raises(ValueError, match="one length"):
        local_totals(routes_of(), GROUP[:3], LENGTHS)
