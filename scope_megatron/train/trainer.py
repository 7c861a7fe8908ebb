"""The training step. :meth:`Trainer.step` is one step of on-policy distillation, on one page."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import torch

from scope_megatron.config import Config
from scope_megatron.data.order import order_of
from scope_megatron.engine.interface import Engine
from scope_megatron.engine.tensors import engine_tensors
from scope_megatron.job.watchdog import Progress
from scope_megatron.learn import observe
from scope_megatron.learn.batch import Batch
from scope_megatron.learn.deal import Arithmetic, make_batch
from scope_megatron.learn.learner import Learner
from scope_megatron.learn.tenants import add_tenants
from scope_megatron.logging.metrics import PhaseTimer
from scope_megatron.logging.overlap import hidden_shares
from scope_megatron.parallel import platform, topology
from scope_megatron.parallel.memory import PhaseMemory, Tenants
from scope_megatron.parallel.offload import OptimizerPlace
from scope_megatron.rollout.verify import Verifiers
from scope_megatron.trace.spans import span
from scope_megatron.train import identity, setup
from scope_megatron.train.acting import Acting
from scope_megatron.train.actor import Actor
from scope_megatron.train.remote import RemoteActor
from scope_megatron.train.responses import ResponseLog
from scope_megatron.types import Prompt, Rollout, Verdict

CHECKED_FIRST = 5  # transfers of a process that are all checked


class Trainer:
    """Data, actor and learner of a run, on this rank. Supervised runs (kd) may have no actor."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.topology = setup.start_process(config)
        tokenizer = setup.build_tokenizer(config)
        self.data = setup.build_train_data(config, tokenizer)
        self.eval_data = setup.build_eval_data(config, tokenizer) if config.evaluates else {}
        self.identity = identity.of_run(config, self.data, tokenizer)
        found = setup.found_here(self.identity, self.eval_data)
        identity.require_agreement(found)
        weights = [source.weight for source in config.data.train]
        self.order = order_of(self.data.sizes, weights, config.seed, config.data.shuffle)
        verifiers = self._build_verifiers() if config.needs_engine and not config.separate else None
        self.learner = Learner(config, self.topology)
        student = self.learner.student
        offload = config.optimizer.offload == "rollout"
        self.optimizer_place = OptimizerPlace(student.ddp, student.optimizer, offload)
        self.optimizer_place.leave()  # before the engine looks for memory
        self._actor: Acting | None = None
        if verifiers is not None:
            self._actor = Actor(config, tokenizer, self.topology, verifiers)
        elif config.separate:
            self._actor = RemoteActor(config, self.topology, found, self.prompts)
        self.arithmetic = Arithmetic.of(self.learner.student.hf["hidden_size"])
        self.progress = Progress()
        self.memory = PhaseMemory(self._tenants(), watch=config.logging.memory == "all")
        synchronize = torch.cuda.synchronize if platform.has_cuda() else None
        self.timer = PhaseTimer(synchronize, self._enter, self.memory.leave)
        self.metrics = observe.step_metrics(config.teacher_tags)
        self.responses = ResponseLog(config, tokenizer, self.topology)
        self._abandoned, self._transfers = False, 0

    def _build_verifiers(self) -> Verifiers:
        """Before any model is loaded: a row nobody can grade ends the run here."""
        sets = [*([self.data] if self.config.on_policy else []), *self.eval_data.values()]
        return Verifiers(self.config.verifier, (one for data in sets for one in data.kinds()))

    def _tenants(self) -> Tenants:
        tenants = Tenants()
        learner = self.learner
        add_tenants(tenants, learner.student, learner.frozen, learner.reference)
        if isinstance(self._actor, Actor):
            tenants.add("engine", partial(engine_tensors, self._actor.engine))
        return tenants

    def _enter(self, phase: str) -> None:
        self.progress.enter(phase, self._actor is not None and phase in self._actor.waits_in)
        self.memory.enter(phase)

    @property
    def actor(self) -> Acting:
        """The actor; a supervised run that never evaluates has none."""
        assert self._actor is not None
        return self._actor

    @property
    def engine(self) -> Engine:
        """This rank's engine, where it has one."""
        assert isinstance(self._actor, Actor)
        return self._actor.engine

    @property
    def signum(self) -> int:
        """A signal that a sampling rank received, 0 for none."""
        return self._actor.signum if self._actor is not None else 0

    def step(self, step: int) -> dict[str, float]:
        """Step number ``step``, from 1; returns its metrics, the same on every rank."""
        started = time.perf_counter()
        self.progress.step = step
        prompts = self.prompts(step)
        if self.config.on_policy:
            with self.timer("rollout"):
                sampled = self.actor.sample(prompts, step, self._score_ahead)
            with self.timer("verify"):
                rollouts = self.actor.grade(sampled)
        else:
            rollouts = [_given(prompt) for prompt in prompts]
        with self.timer("deal"):
            batch = make_batch(
                rollouts, self.config.objective.truncated, self.topology, self.arithmetic
            )
        with self.timer("score"):
            self.learner.score(batch)
            self.learner.note_alternatives(batch, *self.responses.alternatives(batch, step))
        self.learner.rest_frozen(updates_to_come=True)
        with self.timer("train"), self.optimizer_place.resident():
            for number, part in enumerate(batch.parts(self.config.train.updates_per_batch), 1):
                weighed = self.learner.weigh(part)
                self.learner.update(part, weighed, self.metrics, (step, number))
                self.responses.note(part, weighed, step, number)
        self.learner.rest_frozen(updates_to_come=False)
        if self.config.on_policy:
            with self.timer("sync"):
                self.sync(rollouts)
        return self.observe(batch, started)

    def _score_ahead(self, groups: list[list[Rollout]]) -> None:
        """Groups that are complete, while others are still sampled on other ranks."""
        self.progress.enter("score")
        with span("score ahead", groups=len(groups)):
            self.learner.score_ahead(groups)
        self.progress.enter("rollout", waits=True)

    def prompts(self, step: int) -> list[Prompt]:
        """This replica's share of the step's prompts."""
        indices = self.order.batch(step - 1, self.config.prompts_per_step)
        return [self.data[i] for i in indices[self.topology.dp_rank :: self.topology.dp_size]]

    def sync(self, rollouts: list[Rollout]) -> None:
        """Send the engine the new parameters and check that it computes with them."""
        self.send_parameters()
        if self._checks_transfer():
            with span("check parameters"):
                largest, mean = self.actor.check_parameters(
                    self.learner.student, rollouts, self.learner.scorer
                )
            self.metrics.maximum("sync/max_abs_logprob_diff", largest)
            self.metrics.maximum("sync/mean_abs_logprob_diff", mean)

    def prepare_engine(self) -> None:
        """Before the first step: an engine that samples gets the parameters, one that only
        evaluates sleeps until then."""
        if self.config.on_policy:
            self.send_parameters()
        elif self._actor is not None:
            self._actor.rest()

    def _checks_transfer(self) -> bool:
        """Each of this process's first transfers, then every n-th."""
        self._transfers += 1
        early = self._transfers <= CHECKED_FIRST
        due = self.progress.step % self.config.engine.check_every == 0
        return self.config.engine.check_samples > 0 and (early or due)

    def send_parameters(self) -> None:
        """The student's parameters to the engine, if there is one."""
        if self._actor is not None:
            self._actor.send_parameters(self.learner.student)

    def evaluate(self, step: int) -> dict[str, float]:
        """Avg@k and Pass@k on ``data.eval`` after ``step`` steps (supervised steps sent no
        parameters: now)."""
        self.progress.enter("evaluate", "evaluate" in self.actor.waits_in)
        if not self.config.on_policy:
            self.send_parameters()
        with span("evaluate"):
            values, samples = self.actor.evaluate(self.eval_data)
        self.responses.evaluated(step, samples)
        if not self.config.on_policy:
            self.actor.rest()
        return values

    def in_flight(self, done: int) -> dict[str, Any] | None:
        """What of the step after ``done`` has been sampled already (collective)."""
        return self._actor.in_flight(done) if self._actor is not None else None

    def resume_in_flight(self, done: int, saved: dict[str, Any]) -> None:
        """Go on with what :meth:`in_flight` gave."""
        if self._actor is not None:
            self._actor.resume(done, saved)

    def observe(self, batch: Batch, started: float) -> dict[str, float]:
        """The step's metrics, reduced once over the data-parallel ranks."""
        observe.observe_batch(self.metrics, batch, self.config)
        if self._actor is not None:
            self._actor.observe(self.metrics)
        values = self.metrics.reduce(self.topology.dp_group, platform.device())
        values |= hidden_shares(values)
        times = self.timer.pop() | {"time/step": time.perf_counter() - started}
        return observe.finish(values) | times | self.memory.pop() | platform.memory_in_use()

    def abandon(self) -> None:
        """The process is about to exit, other ranks may be gone: close nothing that they share."""
        self._abandoned = True
        if isinstance(self._actor, RemoteActor):
            self._actor.close()

    def close(self) -> None:
        """Stop what outlives a python object: the verifier's processes, the process groups."""
        if self._abandoned:
            return
        self.responses.close()
        if self._actor is not None:
            self._actor.close()
        topology.destroy()


def _given(prompt: Prompt) -> Rollout:
    """A supervised response, as if the policy had sampled it."""
    return Rollout(
        prompt=prompt,
        sample=0,
        token_ids=list(prompt.response_ids),
        engine_logprobs=[],
        finished=True,
        verdict=Verdict.CORRECT,
    )
