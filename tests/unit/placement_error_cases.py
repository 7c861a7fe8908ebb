"""Wrong settings of engines on ranks of their own, for ``test_config_errors.py``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from scope_megatron.machine import validating_for
from tests.support.config_run import append, leave

APART = ("rollout.placement=separate", "rollout.ranks=1")

# name: (change of the files, overrides)
PLACEMENT_CASES: dict[str, tuple[Callable[[], None], list[str]]] = {
    "sampling_ranks_colocated": (leave, ["rollout.ranks=2"]),
    "sampling_ranks_missing": (leave, ["rollout.placement=separate"]),
    "sampling_ranks_and_engine": (
        leave,
        ["rollout.placement=separate", "rollout.ranks=3", "rollout.engine.tensor=2"],
    ),
    "more_engines_than_prompts": (leave, ["rollout.placement=separate", "rollout.ranks=5"]),
    "separate_without_sampling": (
        append("algorithm: {name: kd}\n"),
        ["rollout.placement=separate", "rollout.ranks=1", "train.batch_sequences=4"],
    ),
    "lag_colocated": (leave, ["rollout.lag=1"]),
    "lag_of_two": (leave, ["rollout.lag=2", "rollout.placement=separate", "rollout.ranks=1"]),
    "lag_with_top_p": (
        leave,
        ["rollout.lag=1", "rollout.placement=separate", "rollout.ranks=1", "rollout.top_p=0.9"],
    ),
    "ranks_of_both_kinds": (leave, [*APART, "parallel.data=2"]),
    "engine_on_two_nodes": (leave, [*APART, "rollout.ranks=2", "rollout.engine.tensor=2"]),
    "carry_over_colocated": (leave, ["rollout.carry_over=0.25"]),
    "carry_over_ahead": (leave, [*APART, "rollout.carry_over=0.25", "rollout.lag=1"]),
    "carry_over_of_all": (leave, [*APART, "rollout.carry_over=1"]),
    "carry_over_of_no_group": (leave, [*APART, "rollout.carry_over=0.2"]),
    "carry_over_of_the_only_group": (
        leave,
        [*APART, "rollout.carry_over=0.5", "rollout.prompts_per_step=1"],
    ),
    "carry_over_below_the_updates": (
        leave,
        [*APART, "rollout.carry_over=0.75", "train.updates_per_batch=2"],
    ),
    "carry_over_with_top_k": (leave, [*APART, "rollout.carry_over=0.25", "rollout.top_k=9"]),
    "separate_engine_cuts_heads": (
        leave,
        ["rollout.placement=separate", "rollout.ranks=4", "rollout.engine.tensor=4"],
    ),
}


@contextmanager
def started(ranks: int) -> Iterator[None]:
    """As torchrun starts so many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORLD_SIZE", str(ranks))
        yield


SURROUNDINGS: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "ranks_of_both_kinds": lambda: started(4),
    "engine_on_two_nodes": lambda: validating_for(gpus=2, nodes=2),
}
