"""The training run. :meth:`Trainer.step` is one step of on-policy distillation, on one page."""

from __future__ import annotations

import time
from functools import cached_property

import torch
import torch.distributed as dist

from scope_megatron.config import Config
from scope_megatron.objective.normalize import Totals, local_totals
from scope_megatron.parallel import platform, topology
from scope_megatron.parallel.optimizer import learning_rate
from scope_megatron.rollout.engine import Sampling, request_seed
from scope_megatron.rollout.prompts import PromptOrder
from scope_megatron.rollout.sample import grade, sample
from scope_megatron.rollout.verify import Verifier, get_verifier
from scope_megatron.train import observe, setup
from scope_megatron.train.algorithms import ALGORITHMS
from scope_megatron.train.batch import Batch, Scorer, make_batch
from scope_megatron.train.evaluate import evaluate
from scope_megatron.train.metrics import PhaseTimer
from scope_megatron.train.sync import check_sync, sync_weights
from scope_megatron.train.update import LossSettings, accumulate_gradients
from scope_megatron.types import Prompt, Rollout, Verdict


class Trainer:
    """Student, frozen model, engine, data and verifier of a run, on this rank."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.topology = setup.start_process(config)
        self.tokenizer = setup.build_tokenizer(config)
        self.data = setup.build_train_data(config, self.tokenizer)
        self.eval_data = setup.build_eval_data(config, self.tokenizer)
        self.student = setup.build_student(config, self.topology)
        self.frozen = setup.build_frozen(config, self.topology)
        self.engine = self.place = None
        if config.needs_engine:
            self.engine, self.place = setup.build_engine(config, self.tokenizer, self.topology)
        self.algorithm = ALGORITHMS[config.algorithm.name]
        self.order = PromptOrder(len(self.data), config.seed, config.data.shuffle)
        self.scorer = Scorer.of(config, self.topology)
        self.loss_settings = LossSettings.of(
            config, self.student.vocab_size, self.frozen.vocab_size if self.frozen else None
        )
        self.timer = PhaseTimer(torch.cuda.synchronize if platform.has_cuda() else None)
        self.metrics = observe.step_metrics()

    @cached_property
    def verifier(self) -> Verifier:
        settings = self.config.verifier
        sources = {self.data[i].source for i in range(len(self.data))}
        return get_verifier(settings.name, settings.timeout_s, settings.workers, sorted(sources))

    def step(self, step: int) -> dict[str, float]:
        """One step (counted from 0); returns its metrics, the same on every rank."""
        started = time.perf_counter()
        with self.timer("rollout"):
            rollouts = self.roll_out(step)
        with self.timer("verify"):
            self.judge(rollouts)
        with self.timer("score"):
            batch = make_batch(rollouts, self.config.objective.truncated)
            self.score(batch)
        with self.timer("train"):
            for part in _parts(batch, self.config.train.updates_per_batch):
                self.update(part)
        with self.timer("sync"):
            self.sync(rollouts)
        return self.observe(batch, started)

    def roll_out(self, step: int) -> list[Rollout]:
        """The step's responses for this data-parallel replica: whole groups, side by side."""
        prompts = self.prompts(step)
        if self.engine is None or self.config.algorithm.name == "kd":
            return [_given(prompt) for prompt in prompts]
        rollout = self.config.rollout
        sampling = Sampling(
            samples=rollout.group_size,
            max_tokens=rollout.max_response_tokens,
            temperature=rollout.temperature,
            top_p=rollout.top_p,
            top_k=rollout.top_k,
            seed=request_seed(self.config.seed, step),
        )
        rollouts = sample(self.engine, prompts, sampling, self.topology, self.place)
        self.engine.sleep()
        return rollouts

    def prompts(self, step: int) -> list[Prompt]:
        """This replica's share of the step's prompts."""
        config, topo = self.config, self.topology
        size = config.rollout.prompts_per_step if config.algorithm.name != "kd" else None
        size = size or config.train.batch_sequences
        indices = self.order.batch(step, size)
        return [self.data[i] for i in indices[topo.dp_rank :: topo.dp_size]]

    def judge(self, rollouts: list[Rollout]) -> None:
        """Give every response its verdict (given ones are right by definition)."""
        if self.config.algorithm.name != "kd":
            grade(rollouts, self.verifier, self.tokenizer, self.topology)

    def score(self, batch: Batch) -> None:
        """Log-probabilities of the behaviour policy, and of the frozen model where it is needed."""
        config, rollouts = self.config, batch.rollouts
        routed = batch.members(batch.routes.routed)
        temperature = self.loss_settings.temperature
        if config.algorithm.name != "kd":
            if config.objective.old_logprobs == "rollout":
                batch.old_logprobs = {i: torch.tensor(rollouts[i].engine_logprobs) for i in routed}
            else:
                batch.old_logprobs = self.scorer.logprobs(
                    self.student.ddp,
                    rollouts,
                    routed,
                    temperature=temperature,
                    vocab_size=self.student.vocab_size,
                )
        if self.frozen is None:
            return
        is_teacher = config.needs_teacher
        scores = self.scorer.logprobs(
            self.frozen.model,
            rollouts,
            batch.members(self.algorithm.teacher_scores(batch.routes)),
            temperature=config.objective.teacher_temperature if is_teacher else temperature,
            vocab_size=self.frozen.vocab_size,
        )
        batch.mask_unscored(scores)
        if is_teacher:
            batch.teacher_logprobs = scores
        else:
            batch.reference_logprobs = scores

    def update(self, batch: Batch) -> None:
        """One optimizer update; denominators are those of the global batch."""
        totals = Totals(self._global(local_totals(batch.routes, batch.group, batch.lengths).values))
        streams = self.algorithm.streams(batch, self.config, totals)
        self.student.ddp.zero_grad_buffer()
        self.student.optimizer.zero_grad()
        terms = accumulate_gradients(
            self.student.ddp,
            self.frozen.model if self.frozen else None,
            batch,
            streams,
            self.loss_settings,
            self.scorer,
        )
        self.metrics.maximum("lr", learning_rate(self.student.optimizer))
        _, grad_norm, _ = self.student.optimizer.step()
        self.student.scheduler.step(increment=1)
        self.metrics.maximum("grad_norm", float(grad_norm))
        observe.observe_losses(self.metrics, terms)
        observe.observe_weights(self.metrics, batch, streams)

    def sync(self, rollouts: list[Rollout]) -> None:
        """Give the engine the new weights and check that it computes with them."""
        if self.engine is None or self.config.algorithm.name == "kd":
            return
        sync_weights(self.student, self.engine, self.config, self.topology)
        if self.config.engine.check_samples:
            largest, mean = check_sync(
                self.student, self.engine, rollouts, self.config, self.scorer
            )
            self.metrics.maximum("sync/max_abs_logprob_diff", largest)
            self.metrics.maximum("sync/mean_abs_logprob_diff", mean)

    def evaluate(self) -> dict[str, float]:
        """Avg@k and Pass@k with the engine's weights brought up to date first if need be."""
        if self.config.algorithm.name == "kd":
            sync_weights(self.student, self.engine, self.config, self.topology)
        return evaluate(
            self.config,
            self.engine,
            self.place,
            self.eval_data,
            self.verifier,
            self.tokenizer,
            self.topology,
        )

    def observe(self, batch: Batch, started: float) -> dict[str, float]:
        """The step's metrics, reduced once over the data-parallel ranks."""
        observe.observe_rollouts(self.metrics, batch)
        observe.observe_perplexities(self.metrics, batch)
        observe.observe_mismatch(self.metrics, batch, self.config)
        values = self.metrics.reduce(self.topology.dp_group, platform.device())
        times = self.timer.pop() | {"time/step": time.perf_counter() - started}
        return observe.finish(values) | times | platform.memory_in_use()

    def close(self) -> None:
        """Stop what outlives a python object: the verifier's processes, the process groups."""
        if "verifier" in self.__dict__:
            self.verifier.close()
        if self.engine is not None:
            self.engine.close()
        topology.destroy()

    def _global(self, values: torch.Tensor) -> torch.Tensor:
        on_device = values.to(platform.device())
        dist.all_reduce(on_device, group=self.topology.dp_group)
        return on_device.cpu()


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


def _parts(batch: Batch, count: int) -> list[Batch]:
    """The batch's groups dealt into ``count`` batches, one optimizer update each."""
    return [batch] if count == 1 else [batch.part(start, count) for start in range(count)]


def train(config: Config) -> int:
    """Run the whole training; returns the process's exit code."""
    from scope_megatron.train.run import run

    return run(config)


