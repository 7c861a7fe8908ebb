"""Groups that are filtered out have no share in any denominator: what is left is trained as a batch
of its own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from scope_megatron.learn.algorithms import pack_streams, weigh
from scope_megatron.learn.batch import Batch
from scope_megatron.objective.packing import build, scatter_to_sequences
from scope_megatron.objective.routing import Routes
from tests.support.switches import RESPONSES, Response, made_batch, made_config

NORMALIZATIONS = ("token_mean", "prompt_sum", "sequence_mean", "microbatch_mean")
MICROBATCHES = ([0, 1, 13], [2, 3], [12, 15])  # of what is kept: groups 0 and 3, without 14


def group_of(response: Response) -> list[Response]:
    return [r for r in RESPONSES if r.group == response.group and r.judged]


KEPT = [r for r in RESPONSES if r.judged and len({o.right for o in group_of(r)}) == 2]


def opd_factor(response: Response, normalization: str) -> float:
    """What multiplies a token's log-ratio, of a batch that is KEPT alone."""
    if normalization == "token_mean":
        return 1 / sum(r.length for r in KEPT)
    if normalization == "prompt_sum":
        return 1 / len(group_of(response)) / len({r.group for r in KEPT})
    if normalization == "sequence_mean":
        return 1 / response.length / len(KEPT)
    mine = next(members for members in MICROBATCHES if response.number in members)
    return len(mine) / len(KEPT) / sum(RESPONSES[i].length for i in mine)


def laid(batch: Batch, settings: dict[str, dict[str, object]], term: str = "kl"):
    """Response number -> the term's factors of its tokens, laid out in MICROBATCHES."""
    config = made_config(**settings)
    weighed, found = weigh(batch, config), {}
    assert {i for members in MICROBATCHES for i in members} == {
        *batch.members(weighed.streams.active())
    }
    for members in MICROBATCHES:
        pack = build({i: ((1,), [5] * RESPONSES[i].length) for i in members}, members)
        streams = pack_streams(weighed.streams, batch, config, pack)
        rows = getattr(streams.lay_out(pack), term)
        found |= {i: part.tolist() for i, part in scatter_to_sequences(rows, pack).items()}
    return found


def settings(normalization: str, **algorithm: object) -> dict[str, dict[str, object]]:
    objective = {"normalization": normalization}
    return {
        "algorithm": {"name": "opd", "group_filter": "mixed"} | algorithm,
        "objective": objective,
    }


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_filtered_groups_have_no_share_in_the_denominators(normalization: str) -> None:
    ours = laid(made_batch(), settings(normalization))
    for response in KEPT:
        wanted = [opd_factor(response, normalization)] * response.length
        assert ours[response.number] == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_without_filter_every_prompt_counts(normalization: str) -> None:
    """Groups that nobody could judge are prompts of the batch, and no routed responses."""
    batch = made_batch()
    judged = torch.tensor([r in KEPT for r in RESPONSES])
    batch.routes = Routes(
        batch.routes.correct & judged,
        batch.routes.incorrect & judged,
        batch.routes.masked | ~judged,
    )
    kept = laid(batch, settings(normalization))
    plain = laid(batch, settings(normalization, group_filter="none"))
    share = 0.5 if normalization == "prompt_sum" else 1.0
    for number, values in kept.items():
        assert plain[number] == pytest.approx([share * v for v in values], rel=1e-6)


def test_prefixes_count_their_tokens_alone_in_a_microbatch() -> None:
    """objective.prefix_tokens: a response counts min(length, k) tokens, in microbatches as well."""
    given = settings("microbatch_mean")
    given["objective"] |= {"prefix_tokens": 3}
    ours = laid(made_batch(), given)
    for members in MICROBATCHES:
        counted = sum(min(RESPONSES[i].length, 3) for i in members)
        for i in members:
            wanted = [
                len(members) / len(KEPT) / counted if t < 3 else 0.0 for t in range(len(ours[i]))
            ]
            assert ours[i] == pytest.approx(wanted, rel=1e-6)


def test_a_batch_of_filtered_groups_alone_has_no_terms() -> None:
    batch = made_batch()
    none = torch.zeros_like(batch.routes.correct)
    batch = replace(batch, routes=Routes(none, ~batch.routes.masked, batch.routes.masked))
    for normalization in NORMALIZATIONS:
        streams = weigh(batch, made_config(**settings(normalization))).streams
        assert streams.kl is not None and streams.kl.tolist() == [0.0] * len(RESPONSES)
