"""Groups that a step leaves for the next one: who is waited for, what a resumed run reads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from scope_megatron import outputs
from scope_megatron.config import load_config
from scope_megatron.learn.deal import _turns
from scope_megatron.remote.carry import CarryOver

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
GROUPS = range(8)


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """A world of one rank."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def carry(directory: Path, *more: str) -> CarryOver:
    """As a process of a run in ``directory`` has it."""
    settings = [
        *(f"output_dir={directory}", "parallel.tensor=1", "parallel.data=1", "train.steps=5"),
        *("rollout.placement=separate", "rollout.ranks=1", "rollout.prompts_per_step=8"),
        *("rollout.carry_over=0.25", "resume=auto", *more),
    ]
    return CarryOver(load_config(QUICKSTART, settings), is_main=True)


def test_a_resumed_run_leaves_the_groups_that_were_left(tmp_path: Path) -> None:
    first = carry(tmp_path)
    assert (first.most, first.spared(1)) == (2, 2)
    assert first.waits_for(1, GROUPS) == set(GROUPS), "any two of them may be left"
    first.note(1, {3, 6})
    first.note(2, [])
    again = carry(tmp_path)
    assert again.waits_for(1, GROUPS) == set(GROUPS) - {3, 6} and again.spared(1) == 0
    assert again.waits_for(2, GROUPS) == set(GROUPS) and again.spared(2) == 0, "none may be left"
    assert again.spared(3) == 2, "nobody has decided yet"
    again.note(1, {0, 1})
    assert carry(tmp_path).waits_for(1, GROUPS) == set(GROUPS) - {3, 6}, "it stays decided"
    other = carry(tmp_path, "rollout.temperature=0.5")
    assert other.spared(1) == 2, "other responses, other lengths"
    assert carry(tmp_path, "resume=never").spared(1) == 2, "a new run"
    assert not (tmp_path / outputs.CARRIED).exists()


def test_the_last_step_leaves_nothing(tmp_path: Path) -> None:
    carry(tmp_path).note(4, {1})
    shorter = carry(tmp_path, "train.steps=4")
    assert shorter.waits_for(4, GROUPS) == set(GROUPS) and shorter.spared(4) == 0


def test_a_line_torn_by_a_kill_is_no_decision(tmp_path: Path) -> None:
    carry(tmp_path).note(1, {2})
    path = tmp_path / outputs.CARRIED
    path.write_text(path.read_text() + '{"step": 2, "le')
    resumed = carry(tmp_path)
    assert resumed.spared(1) == 0 and resumed.spared(2) == 2
    resumed.note(2, {5})
    assert carry(tmp_path).waits_for(2, GROUPS) == set(GROUPS) - {5}
    assert json.loads(path.read_text().splitlines()[-1])["left"] == [5]


@pytest.mark.parametrize(
    ("share", "prompts", "data", "groups"),
    [(0.25, 8, 1, 2), (0.29, 100, 1, 29), (0.25, 8, 2, 1), (0.3, 8, 1, 2)],
)
def test_the_share_is_of_a_replicas_groups(
    share: float, prompts: int, data: int, groups: int, tmp_path: Path
) -> None:
    settings = (f"rollout.carry_over={share}", f"rollout.prompts_per_step={prompts}")
    assert carry(tmp_path, *settings, f"parallel.data={data}").most == groups


def test_replicas_with_different_numbers_of_groups_take_turns() -> None:
    replica, nth = _turns([1, 3, 2])
    assert replica.tolist() == [0, 1, 2, 1, 2, 1]
    assert nth.tolist() == [0, 0, 0, 1, 1, 2]
    prompts = torch.arange(8)  # with equal numbers: prompt p is the (p // data)-th of p % data
    replica, nth = _turns([2, 2, 2, 2])
    assert torch.equal(replica, prompts % 4) and torch.equal(nth, prompts // 4)
