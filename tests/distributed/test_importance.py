"""Responses of an engine whose parameters are others: weights of whole updates are cut at tis_clip.

The engine is made to say of every token a fiftieth of the trainer's probability. Cut at 2, every
update is then twice the one of an engine that agrees, however the ratio comes about.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scope_megatron.types import Verdict
from tests.distributed.test_step_layouts import rollouts, settings
from tests.support.harness import run_distributed_test
from tests.support.steps import one_step
from tests.support.tiny_hf import make_tiny_model

AWAY, CUT = math.log(50.0), 2.0
TERMS: dict[str, dict[str, Any]] = {
    "scope": {},
    "scope-log": {"objective.likelihood": "log"},
    "opd": {"algorithm.name": "opd"},
}
KD = {"algorithm.name": "kd", "train.batch_sequences": 24, "objective.old_logprobs": "auto"}
EXACT = {"algorithm.name": "opd", "objective.kl": "reverse_kl"}
OLD = ("auto", "recompute", "rollout")


def updates(rank: int, world_size: int, root: Path) -> dict[str, tuple[float, float]]:
    """(loss, norm of the gradient) by case, without and with an engine of other parameters."""
    from scope_megatron.learn.learner import Learner
    from scope_megatron.parallel import platform
    from scope_megatron.parallel.topology import create_topology

    platform.initialize()
    topology, out = create_topology(1, 1, False), {}

    def update(name: str, changes: dict[str, Any], said: list[Any]) -> Any:
        batch, metrics = one_step(Learner(settings(root, changes), topology), said)
        values = metrics.reduce(topology.dp_group, platform.device())
        out[name] = (values["loss/total"], values["grad_norm"])
        return batch

    plain = rollouts()
    own = update("own", {"algorithm.name": "opd"}, plain).old_logprobs
    agrees = [
        replace(r, engine_logprobs=own[i].tolist()) if i in own else r for i, r in enumerate(plain)
    ]
    away = [replace(r, engine_logprobs=[p - AWAY for p in r.engine_logprobs]) for r in agrees]
    for name, changes in {**TERMS, "exact": EXACT}.items():
        update(name, changes, agrees)
        for old in OLD:
            given = changes | {"objective.old_logprobs": old, "objective.tis_clip": CUT}
            update(f"{name} {old}", given, away)
    given = [replace(r, engine_logprobs=[], verdict=Verdict.CORRECT) for r in plain]
    for name, changes in (("kd", {}), ("kd cut", {"objective.tis_clip": CUT})):
        update(name, KD | changes, given)
    return out


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[float, float]]:
    root = tmp_path_factory.mktemp("importance")
    make_tiny_model("qwen2-bias", root / "student")
    make_tiny_model("llama", root / "teacher")
    return run_distributed_test(updates, 1, root, timeout=180)[0]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("old", OLD)
@pytest.mark.parametrize("name", TERMS)
def test_no_update_is_beyond_the_cut(results: Any, name: str, old: str) -> None:
    wanted = [CUT * value for value in results[name]]
    assert results[f"{name} {old}"] == pytest.approx(wanted, rel=1e-4)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("old", OLD)
def test_an_exact_divergence_knows_no_sampled_token(results: Any, old: str) -> None:
    assert results[f"exact {old}"] == pytest.approx(results["exact"], rel=1e-4)


@pytest.mark.timeout(300)
def test_given_responses_have_no_engine(results: Any) -> None:
    assert results["kd cut"] == results["kd"]
