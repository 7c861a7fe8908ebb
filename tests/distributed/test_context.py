"""Context parallelism: the ranks that share a pack compute what one rank computes of it whole.

Packs hold several responses, and borders between ranks lie within prompts and responses: scores,
weights and targets have to stay with their tokens.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from scope_megatron.objective.packing import build
from scope_megatron.parallel.context import ContextShare, own_rows, pieces_of
from tests.distributed.test_step_layouts import (
    CONTEXT_LAYOUTS,
    OBJECTIVES,
    assert_same_update,
    one_update,
    reference,
    rollouts,
    settings,
)
from tests.distributed.test_teacher_offload import learner_of, share
from tests.support.harness import run_distributed_test
from tests.support.steps import batch_of
from tests.support.tiny_hf import make_tiny_model
from tests.support.viewed_runs import Letters

# (student, teacher, its layouts, objectives)
RUNS: dict[str, tuple[str, str, list[str], list[str]]] = {
    "dense": (
        "qwen2-bias",
        "llama",
        ["context-small-microbatches", "context-recompute", "context-tensor-sequence"],
        ["scope", "scope-reverse-kl-fused"],
    ),
    "every-layout": (
        "qwen2-bias",
        "llama",
        [name for name in CONTEXT_LAYOUTS if "expert" not in name],
        ["scope", "scope-reverse-kl", "scope-reverse-kl-fused", "scope-prompt-sum"],
    ),
    "windows-and-caps": ("gemma2", "gemma3", ["context"], ["scope-reverse-kl"]),
    "mixture": ("qwen3-moe", "mixtral", ["context-expert"], ["scope-reverse-kl-fused"]),
}
LONG = (
    "every-layout",
    "windows-and-caps",
    "mixture",
)  # minutes: pytest -m study tests/distributed/test_context.py


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "run", ["dense", *(pytest.param(r, marks=pytest.mark.study) for r in LONG)]
)
def test_update_equals_transformers(tmp_path: Path, run: str) -> None:
    student, teacher, layouts, objectives = RUNS[run]
    make_tiny_model(student, tmp_path / "student")
    make_tiny_model(teacher, tmp_path / "teacher")
    expected = {
        name: reference(tmp_path, settings(tmp_path, OBJECTIVES[name])) for name in objectives
    }
    found: dict[Any, Any] = {}
    for world in (2, 4):
        names = [name for name in layouts if CONTEXT_LAYOUTS[name][0] == world]
        if names:
            args = (world, tmp_path, names, objectives)
            found |= run_distributed_test(one_update, *args, timeout=240)[0]
    assert len(found) == len(layouts) * len(objectives)
    for (layout, objective), ours in found.items():
        assert_same_update(ours, expected[objective], f"{run}: {layout}")


@pytest.mark.timeout(240)
def test_each_response_is_written_once(tmp_path: Path) -> None:
    """Both context ranks have all of a replica's responses; one of them writes."""
    make_tiny_model("qwen2-bias", tmp_path / "student", layers=2)
    make_tiny_model("llama", tmp_path / "teacher", layers=2)
    writers = run_distributed_test(write_responses, 2, tmp_path)
    assert writers == [True, False]
    index = tmp_path / "out/rollouts/index"
    lines = [line for path in index.iterdir() for line in path.read_text().splitlines()]
    found = Counter((row["group"], row["sample"]) for row in map(json.loads, lines))
    assert found == Counter((r.prompt.index, r.sample) for r in rollouts())


def write_responses(rank: int, world_size: int, root: Path) -> bool:
    """One update whose responses are written down; whether this rank speaks for its replica."""
    from scope_megatron.learn import observe
    from scope_megatron.parallel import platform
    from scope_megatron.train.responses import ResponseLog

    platform.initialize()
    written = {"logging.rollouts": {"every": 1, "select": "all"}}
    learner = learner_of(root, {"context": 2}, written)
    log = ResponseLog(learner.config, Letters(), learner.topology)  # type: ignore[arg-type]
    batch = batch_of(share(learner), learner.topology)
    learner.score(batch)
    weighed = learner.weigh(batch)
    learner.update(batch, weighed, observe.step_metrics())
    log.note(batch, weighed, step=1, number=1)
    log.close()
    return bool(learner.topology.is_replica_first)


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_every_token_and_row_is_one_ranks(ranks: int) -> None:
    sequences = [((1, 2, 3), (4,) * 13), ((5,), (6,) * 2), ((7, 8), ()), ((9,) * 4, (3,) * 21)]
    pack = build(sequences, [0, 1, 2, 3], 2 * ranks)
    shares, rows = [], []
    for rank in range(ranks):
        topology: Any = type("Place", (), {"cp_rank": rank, "cp_size": ranks, "cp_group": object()})
        share = ContextShare.of(pack, topology)
        assert share is not None
        numbers, places = own_rows(pack, topology)
        assert torch.equal(share.tokens[places], pack.rows[numbers])
        assert sum(s.end - s.begin for s in share.segments) == len(share.tokens)
        for s in share.segments:
            tokens = share.tokens[s.first : s.first + s.end - s.begin]
            assert tokens.tolist() == list(range(s.begin, s.end))
            assert s.start in pack.bounds
            assert not any(s.start < bound < s.end for bound in pack.bounds)
        shares.append(share)
        rows.append(numbers)
    everywhere = torch.cat([share.tokens for share in shares])
    assert torch.equal(everywhere[shares[0].order], torch.arange(pack.num_tokens))
    assert torch.equal(torch.cat(rows).sort().values, torch.arange(pack.num_rows))


@pytest.mark.timeout(120)
def test_gathered_tokens_are_the_packs_and_gradients_go_back_to_their_ranks() -> None:
    for values, gradients in run_distributed_test(gather_numbers, 2):
        assert torch.equal(values, torch.arange(16.0))
        assert torch.equal(*gradients)


def gather_numbers(rank: int, world_size: int) -> tuple[Any, Any]:
    pack = build([((0,) * 9, (0,) * 5)], [0], 4)
    place = {"cp_rank": rank, "cp_size": world_size, "cp_group": dist.group.WORLD}
    topology: Any = type("Place", (), place)
    share = ContextShare.of(pack, topology)
    assert share is not None
    own = share.tokens.float().requires_grad_()
    values = share.gather(own)
    (values * (rank + 1) * torch.arange(16.0)).sum().backward()
    return values.detach(), (own.grad, 3 * share.tokens.float())  # 1 of rank 0, 2 of rank 1


def test_a_long_sequence_is_shared_evenly() -> None:
    """Causal attention's pairs of query and key on each rank."""
    pairs = [
        sum(high * (high + 1) - low * (low + 1) for low, high in pieces_of(rank, 4, 4096)) / 2
        for rank in range(4)
    ]
    assert max(pairs) / min(pairs) < 1.001
