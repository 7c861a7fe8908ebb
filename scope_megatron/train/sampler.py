"""A rank that only samples (``rollout.placement: separate``): an engine and verifiers' processes.

It knows the data and the order of prompts, so that a step's number is all it has to be told. What
rank 0 asks is carried out one after the other; responses leave as soon as they are graded.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import torch
import torch.distributed as dist

from scope_megatron.config import Config
from scope_megatron.data.dataset import PromptDataset
from scope_megatron.data.order import order_of
from scope_megatron.engine.interface import Sampling
from scope_megatron.exits import ENGINE, StopRun
from scope_megatron.job.interrupt import Interrupt
from scope_megatron.job.watchdog import Progress, Watchdog
from scope_megatron.parallel import topology
from scope_megatron.parallel.meeting import job_place
from scope_megatron.remote.bridge import Bridge
from scope_megatron.remote.messages import (
    EndSampling,
    EngineScores,
    Errand,
    ErrandDone,
    GradedResponse,
    SampleErrand,
    SamplerHello,
    SamplingOrder,
    ScoreSequences,
    TakeParameters,
)
from scope_megatron.remote.parameters import RemoteParameters
from scope_megatron.remote.post import SamplerPost
from scope_megatron.rollout.grading import Grading
from scope_megatron.rollout.sample import EnginePlace, evaluation_sampling, training_sampling
from scope_megatron.rollout.verify import Verifiers
from scope_megatron.trace import spans
from scope_megatron.trace.spans import span
from scope_megatron.train import identity, setup
from scope_megatron.types import Prompt, Rollout


def serve_samples(config: Config) -> int:
    """Be a sampling rank until rank 0 says that the run is over; returns the exit code."""
    sampler = SamplingRank(config)
    watchdog = Watchdog(config.faults, config.output_dir, sampler.progress)
    watchdog.start()
    try:
        sampler.run()
    except torch.OutOfMemoryError as error:
        raise StopRun(ENGINE, _out_of_memory(error)) from None
    except RuntimeError as error:
        if lost := watchdog.peer_lost(error):
            raise lost from None
        raise
    finally:
        watchdog.stop()
        spans.stop()
    sampler.close()
    return 0


class SamplingRank:
    """Engine, verifiers and prompts of this rank."""

    def __init__(self, config: Config) -> None:
        self.config = config
        setup.join_job(config)
        self._place = EnginePlace.alone(
            dist.get_rank(), dist.get_world_size(), config.engine.tensor
        )
        self.progress, self._interrupt = Progress(), Interrupt()
        self._tokenizer = setup.build_tokenizer(config)
        self._data = setup.build_train_data(config, self._tokenizer)
        self._sets = setup.build_eval_data(config, self._tokenizer) if config.evaluates else {}
        self._found = setup.found_here(
            identity.of_run(config, self._data, self._tokenizer), self._sets
        )
        weights = [source.weight for source in config.data.train]
        self._order = order_of(self._data.sizes, weights, config.seed, config.data.shuffle)
        sets = [self._data, *self._sets.values()]
        self._verifiers = Verifiers(config.verifier, (k for data in sets for k in data.kinds()))
        self._engine = setup.build_engine(config, self._tokenizer)
        self._connect()

    def _connect(self) -> None:
        place = job_place()
        assert place.store is not None
        self._bridge = Bridge(place, setup.collective_timeout_s(self.config.faults))
        hello = SamplerHello(dist.get_rank(), os.uname().nodename, self._found)
        self._post = SamplerPost(place.store, hello, self.config.parallel.data)
        self._shards: TakeParameters | None = None

    def run(self) -> None:
        """Carry out rank 0's commands, up to :class:`EndSampling`."""
        self._interrupt.install()
        while not isinstance(command := self._next(), EndSampling):
            self._obey(command)

    def _next(self) -> SamplingOrder:
        self.progress.enter("wait", waits=True)
        spans.flush()
        with span("wait"):
            command: SamplingOrder = self._post.receive()
        return command

    def _obey(self, command: SamplingOrder) -> None:
        if isinstance(command, SampleErrand):
            self._sample(command.errand)
        elif isinstance(command, TakeParameters):
            self.progress.enter("sync")
            with span("sync"):
                self._take_parameters(command)
        elif isinstance(command, ScoreSequences):
            self.progress.enter("check")
            with span("check parameters"):
                logprobs = self._engine.score(command.sequences)
            if self._place.is_leader:
                self._post.send(EngineScores(logprobs))

    def _take_parameters(self, command: TakeParameters) -> None:
        self._shards = command if command.shards is not None else self._shards
        assert self._shards is not None and self._shards.shards is not None
        engine = self.config.engine
        self._engine.send_parameters(
            RemoteParameters(
                self._bridge,
                self._post,
                self._shards.shards,
                engine.bucket_mib * 2**20,
                engine.tensor,
            )
        )

    def _sample(self, errand: Errand) -> None:
        """This engine's share of the errand's prompts; every n-th, as each replica has."""
        prompts, sampling = self._errand(errand)
        place, replicas = self._place, self.config.parallel.data
        positions: dict[int, int] = {}  # of a rollout, by its identity

        def leave(rollout: Rollout) -> None:
            position = positions[id(rollout)]
            self._post.send(GradedResponse.of(errand, position, rollout), position % replicas)

        grading = Grading(self._verifiers, self._tokenizer, leave)

        def hand_over(number: int, rollout: Rollout) -> None:
            if number % place.ranks == place.rank:
                group = number // sampling.samples
                positions[id(rollout)] = place.index + group * place.count
                grading.put(rollout)

        begun = time.perf_counter()
        mine = prompts[place.index :: place.count]
        with span("rollout" if errand[0] == "train" else "evaluate", prompts=len(mine)):
            self._engine.generate(mine, sampling, hand_over)
        sampled = time.perf_counter()
        self.progress.enter("verify")
        with span("verify"):
            grading.finish()
        graded = time.perf_counter()
        signum = self._interrupt.received
        times = sampled - begun, graded - sampled, grading.seconds
        self._post.send(ErrandDone(errand, *times, signum))

    def _errand(self, errand: Errand) -> tuple[list[Prompt], Sampling]:
        """All prompts of the errand, and how they are sampled."""
        kind, number, *names = errand
        if kind == "train":
            self.progress.step = step = int(number)
            spans.traced_errand(step, self.config.lag)
            self.progress.enter("rollout")
            indices = self._order.batch(step - 1, self.config.prompts_per_step)
            return [self._data[i] for i in indices], training_sampling(self.config, step)
        self.progress.enter("evaluate")
        dataset: PromptDataset = self._sets[str(names[0])]
        limit = self.config.evaluation.limit
        count = len(dataset) if limit is None else min(limit, len(dataset))
        return [dataset[i] for i in range(count)], evaluation_sampling(self.config)

    def close(self) -> None:
        """End the verifiers' processes and the engine, leave the process groups."""
        parts: list[Callable[[], None]] = [
            self._verifiers.close,
            self._engine.close,
            self._post.close,
            topology.destroy,
        ]
        for close in parts:
            close()


def _out_of_memory(error: BaseException) -> str:
    return (
        "the device's memory did not suffice on a sampling rank: lower "
        "rollout.engine.gpu_memory_utilization or max_num_seqs "
        f"({str(error).splitlines()[0]})"
    )
