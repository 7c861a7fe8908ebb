"""Messages between ranks that train and ranks that sample, over real connections."""

from __future__ import annotations

import io
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from scope_megatron.config import Config, load_config
from scope_megatron.parallel import platform
from scope_megatron.remote.collect import Inbox
from scope_megatron.remote.inflight import decode_batch, encode_batch
from scope_megatron.remote.messages import (
    EngineScores,
    Errand,
    ErrandDone,
    GradedResponse,
    SamplerHello,
)
from scope_megatron.remote.post import PeerGone, SamplerPost, TrainerPost
from scope_megatron.types import Verdict

STEP: Errand = ("train", 3)
QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"


def response(position: int, sample: int, errand: Errand = STEP) -> GradedResponse:
    tokens = [position, sample, 7]
    logprobs = [-0.1 * position, -1.0 / 3.0, -2.5 * sample]
    verdict = Verdict.CORRECT if sample else Verdict.INCORRECT
    return GradedResponse(errand, position, sample, tokens, logprobs, True, "7", verdict)


@pytest.fixture
def posts(monkeypatch: pytest.MonkeyPatch) -> tuple[TrainerPost, list[SamplerPost]]:
    """One replica and two sampling ranks."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", str(server.getsockname()[1]))
        store = dist.HashStore()
        with ThreadPoolExecutor(3) as pool:
            trainer = pool.submit(TrainerPost, store, 0, 2, 20.0)
            hellos = [SamplerHello(rank, f"node{rank}", {}) for rank in range(2)]
            samplers = [pool.submit(SamplerPost, store, hello, 1) for hello in hellos]
            return trainer.result(), [one.result() for one in samplers]


def test_what_is_in_the_way_is_kept(posts: tuple[TrainerPost, list[SamplerPost]]) -> None:
    trainer, (first, second) = posts
    inbox = Inbox(trainer)
    assert {rank: hello.node for rank, hello in trainer.hellos.items()} == {0: "node0", 1: "node1"}
    second.send(response(0, 1))
    second.send(response(0, 0, ("train", 4)))  # of a step that is sampled ahead
    first.send(EngineScores([[1.0]]))
    first.send(ErrandDone(STEP, 1.0, 0.0, 0.5))
    first.send(response(0, 0))
    assert [r.sample for r in inbox.responses(STEP, 2)] == [0, 1]
    assert inbox.next(EngineScores).logprobs == [[1.0]]
    assert inbox.done(STEP, 1)[0].graded_s == 0.5
    assert inbox.held(("train", 4)) == [response(0, 0, ("train", 4))]


def test_groups_come_when_they_are_complete(
    posts: tuple[TrainerPost, list[SamplerPost]],
) -> None:
    trainer, (first, second) = posts
    inbox = Inbox(trainer)
    for message in (response(2, 1), response(0, 1), response(2, 0)):
        first.send(message)
    found = inbox.finished_groups(STEP, 2, range(3))
    assert [(r.position, r.sample) for r in found] == [(2, 0), (2, 1)]
    second.send(response(1, 0))
    second.send(response(0, 0))
    found = inbox.finished_groups(STEP, 2, {0, 1})
    assert [(r.position, r.sample) for r in found] == [(0, 0), (0, 1)]


def test_a_process_that_is_gone_is_noticed(
    posts: tuple[TrainerPost, list[SamplerPost]],
) -> None:
    trainer, (first, second) = posts
    second.close()
    with pytest.raises(PeerGone, match="sampling rank 1") as gone:
        trainer.receive()
    assert platform.lost_connection(gone.value), "the run then asks who went away"
    trainer.close()
    with pytest.raises(PeerGone, match="rank 0"):
        first.receive()


Configure = Callable[..., Config]


@pytest.fixture
def config(tmp_path: Path) -> Configure:
    def load(*more: str) -> Config:
        settings = ["rollout.placement=separate", "rollout.ranks=1", "rollout.lag=1"]
        return load_config(QUICKSTART, [f"output_dir={tmp_path / 'run'}", *settings, *more])

    return load


def test_the_batch_in_flight_comes_back_bit_for_bit(config: Configure) -> None:
    batch = [response(position, sample) for position in (1, 0) for sample in (1, 0)]
    file = io.BytesIO()
    torch.save(encode_batch(config(), 3, batch, 1), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    assert saved["version"] == 1, "the parameters that sampled it"
    assert decode_batch(config(), 3, saved) == sorted(batch, key=lambda r: (r.position, r.sample))
    assert decode_batch(config(), 4, saved) == [], "another step's"
    assert decode_batch(config("rollout.temperature=0.5"), 3, saved) == [], "sampled otherwise"


def test_ratios_are_cut_off_at_lag_1_unless_told_otherwise(config: Configure) -> None:
    assert config().objective.tis_clip == 2.0
    assert config("objective.tis_clip=null").objective.tis_clip is None
    assert config("rollout.lag=0").objective.tis_clip is None
    assert config("rollout.lag=0", "rollout.carry_over=0.5").objective.tis_clip == 2.0
