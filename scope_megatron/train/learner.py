"""The learning half of a step: score a graded batch, weight it, update the student."""

from __future__ import annotations

import torch
import torch.distributed as dist

from scope_megatron.config import Config
from scope_megatron.model.head import caps_logits
from scope_megatron.objective.normalize import Totals, local_totals
from scope_megatron.parallel import platform
from scope_megatron.parallel.optimizer import learning_rate
from scope_megatron.parallel.topology import Topology
from scope_megatron.report.metrics import StepMetrics
from scope_megatron.train import observe, setup
from scope_megatron.train.algorithms import ALGORITHMS
from scope_megatron.train.batch import Batch, Scorer
from scope_megatron.train.nonfinite import NonFiniteGuard
from scope_megatron.train.update import LossSettings, accumulate_gradients


class Learner:
    """The student, the frozen model beside it, and the algorithm that weights their tokens."""

    def __init__(self, config: Config, topology: Topology) -> None:
        self.config, self.topology = config, topology
        self.student = setup.build_student(config, topology)
        self.frozen = setup.build_frozen(config, topology)
        self.algorithm = ALGORITHMS[config.algorithm.name]
        models = [self.student.model, *([self.frozen.model] if self.frozen else [])]
        self.settings = LossSettings.of(
            config,
            self.student.vocab_size,
            self.frozen.vocab_size if self.frozen else None,
            capped=any(caps_logits(model) for model in models),
        )
        self.scorer = Scorer.of(config, topology, fused=self.settings.fused)
        self.guard = NonFiniteGuard(config.output_dir, config.faults.nonfinite_updates)

    def score(self, batch: Batch) -> None:
        """Fill in the log-probabilities the algorithm needs, and mask what could not be scored."""
        if self.config.on_policy:
            batch.old_logprobs = self._behaviour_policy(batch)
            batch.mask_unscored(batch.old_logprobs)
        if self.frozen is not None:
            self._score_frozen(batch, self.frozen)

    def _behaviour_policy(self, batch: Batch) -> dict[int, torch.Tensor]:
        """log pi_old: from a forward pass of the weights that sampled, or as the engine said."""
        routed = batch.members(batch.routes.routed)
        if self.config.objective.old_logprobs == "rollout":
            return {i: torch.tensor(batch.rollouts[i].engine_logprobs) for i in routed}
        return self.scorer.logprobs(
            self.student.ddp,
            batch.rollouts,
            routed,
            temperature=self.settings.temperature,
            vocab_size=self.student.vocab_size,
        )

    def _score_frozen(self, batch: Batch, frozen: setup.FrozenModel) -> None:
        """The teacher scores only what its path needs; grpo's reference scores all."""
        is_teacher = self.config.needs_teacher
        scores = self.scorer.logprobs(
            frozen.model,
            batch.rollouts,
            batch.members(self.algorithm.frozen_scores(batch.routes)),
            temperature=(
                self.settings.teacher_temperature if is_teacher else self.settings.temperature
            ),
            vocab_size=frozen.vocab_size,
        )
        batch.mask_unscored(scores)
        if is_teacher:
            batch.teacher_logprobs = scores
        else:
            batch.reference_logprobs = scores

    def update(self, batch: Batch, metrics: StepMetrics, step: int = 0) -> None:
        """One optimizer update, or train.updates_per_batch of them, each on some of the groups.

        ``step`` (from 0) names what is written down of an update that is skipped.
        """
        for number, part in enumerate(batch.parts(self.config.train.updates_per_batch)):
            self._update(part, metrics, step, number)

    def _update(self, batch: Batch, metrics: StepMetrics, step: int, number: int) -> None:
        totals = Totals(self._global(local_totals(batch.routes, batch.group, batch.lengths).values))
        streams = self.algorithm.streams(batch, self.config, totals)
        self.student.ddp.zero_grad_buffer()
        self.student.optimizer.zero_grad()
        terms = accumulate_gradients(
            self.student.ddp,
            self.frozen.model if self.frozen else None,
            batch,
            streams,
            self.settings,
            self.scorer,
        )
        observe.observe_losses(metrics, terms)
        observe.observe_weights(metrics, batch, streams)
        metrics.maximum("lr", learning_rate(self.student.optimizer))
        members = batch.members(streams.active())
        nothing_left = bool(batch.unscored) and not members
        if not self.guard.accepts(terms, self.student.ddp, nothing_left):
            metrics.maximum("update/skipped", 1.0)
            self._record_skipped(batch, step, number, sorted({*members, *batch.unscored}))
            return
        _, grad_norm, _ = self.student.optimizer.step()
        self.student.scheduler.step(increment=1)
        metrics.maximum("grad_norm", float(grad_norm))

    def _record_skipped(self, batch: Batch, step: int, number: int, members: list[int]) -> None:
        topology = self.topology
        self.guard.record(
            batch,
            step,
            number,
            topology.rank,
            writes=topology.tp_rank == topology.pp_rank == 0,
            scores=lambda: self.scorer.logprobs(
                self.student.ddp,
                batch.rollouts,
                members,
                temperature=self.settings.temperature,
                vocab_size=self.student.vocab_size,
            ),
        )

    def _global(self, values: torch.Tensor) -> torch.Tensor:
        """Counts of this rank -> of the global batch."""
        on_device = values.to(platform.device())
        dist.all_reduce(on_device, group=self.topology.dp_group)
        return on_device.cpu()
