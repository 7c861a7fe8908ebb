"""The learning half of a step: score a graded batch, weigh it, update the student."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from scope_megatron.config import Config
from scope_megatron.learn import models, observe
from scope_megatron.learn.algorithms import ALGORITHMS, Weighed, kept_routes, pack_streams, weigh
from scope_megatron.learn.balance import ExpertBalance
from scope_megatron.learn.batch import Batch
from scope_megatron.learn.deal import Arithmetic, make_batch
from scope_megatron.learn.frozen.build import build_frozen, build_reference
from scope_megatron.learn.frozen.model import FrozenModel, number_of
from scope_megatron.learn.head import ROW_COLUMNS, build_head
from scope_megatron.learn.nonfinite import NonFiniteGuard
from scope_megatron.learn.passes import Passes
from scope_megatron.learn.privileged import extrapolated, read_by_teacher
from scope_megatron.learn.rows import Rows
from scope_megatron.learn.scorer import Scored, Scorer
from scope_megatron.logging.metrics import StepMetrics
from scope_megatron.objective.head.spec import Spec
from scope_megatron.objective.loss import TERMS, Clip
from scope_megatron.objective.packing import filler, scatter_to_sequences
from scope_megatron.parallel import pipeline, platform
from scope_megatron.parallel.agree import all_sum
from scope_megatron.parallel.context import sum_over_context
from scope_megatron.parallel.optimizer import learning_rate
from scope_megatron.parallel.topology import Topology, broadcast_from_last_stage
from scope_megatron.trace.spans import span
from scope_megatron.types import PackedBatch, Rollout


class Learner:
    """The student, the frozen models beside it, and the algorithm that weights their tokens."""

    def __init__(self, config: Config, topology: Topology) -> None:
        self.config, self.topology = config, topology
        self.student = models.build_student(config, topology)
        self.frozen = build_frozen(config, topology)
        self.reference = build_reference(config, topology)
        self.algorithm = ALGORITHMS[config.algorithm.name]
        self.passes = Passes.of(config)
        self.head = build_head(config, topology, self.student, self.frozen)
        self.scorer = Scorer(
            topology,
            config.train.microbatch_tokens,
            self.head,
            together=topology.pp_size if config.parallel.virtual_pipeline > 1 else 1,
        )
        coefficient = config.objective.moe_aux_loss_coeff
        self.balance = ExpertBalance(coefficient, self.student.model, topology)
        self.guard = NonFiniteGuard(config.output_dir, config.faults.nonfinite_updates)
        clipped = config.rewards_groups or config.train.updates_per_batch > 1
        self.clip = Clip(
            eps=config.algorithm.clip_eps if clipped else None,
            tis=config.objective.tis_clip if config.on_policy else None,
            high=config.algorithm.clip_high,
            dual=config.algorithm.clip_dual,
            old_gap=config.objective.teacher_gap == "old",
            engine_old=self.passes.ratio and self.passes.student == "engine",
        )

    def score(self, batch: Batch) -> None:
        """The log-probabilities that weights and loss need; masks what could not be scored."""
        if self.passes.student != "none":
            self._score_student(batch)
        if self.frozen or self.config.needs_teacher:
            self._score_frozen(batch)
        if self.reference is not None:
            self._score_reference(batch, self.reference)

    def score_ahead(self, groups: list[list[Rollout]]) -> None:
        """The frozen model's scores of whole groups whose batch is not complete yet: they stay with
        the responses, and :meth:`score` finds them. Collective over a replica.

        A group is packed by itself, so that its scores do not depend on which others were there. A
        model in a layout of its own scores nothing ahead: other replicas would have to be there.
        """
        if not self.frozen:
            return
        alone = replace(self.topology, dp_rank=0, dp_size=1)
        arithmetic = Arithmetic.of(self.student.hf["hidden_size"])
        for group in groups:
            batch = make_batch(group, self.config.objective.truncated, alone, arithmetic)
            scored = self._frozen_scores(batch, ahead=True)
            for index in scored.responses():
                batch.rollouts[index].taught = scored.of(index)

    def rest_frozen(self, updates_to_come: bool) -> None:
        """The frozen models are not run until the next batch; an update to come may still ask for
        their output weights."""
        for frozen in self.frozen:
            frozen.rest(updates_to_come and bool(self.head.teachers))

    def taught_by(self, rollout: Rollout) -> int:
        """The number of the frozen model that scores a response."""
        return number_of(self.frozen, rollout.prompt.tag)

    def _score_student(self, batch: Batch) -> None:
        """log pi_old: from a forward pass of the weights that sampled, or as the engine said."""
        source, routes = self.passes.student, batch.routes
        members = batch.members(routes.correct if source == "weights" else routes.routed)
        if source == "engine":
            engine = {i: torch.tensor(batch.rollouts[i].engine_logprobs) for i in members}
            scored = Scored(logprobs=engine)
        else:
            spec = self.head.spec.alone()
            with span("student scores", responses=len(members)):
                scored = self.scorer.score(self.student, batch.rollouts, members, spec)
        batch.student_mean = self._means(batch, scored.logprobs)
        batch.student_entropy |= scored.entropy
        batch.student_logprobs = scored.logprobs
        if self.passes.ratio:
            batch.old_logprobs = scored.logprobs
        batch.mask_unscored(~batch.student_mean.isfinite())

    def _frozen_scores(self, batch: Batch, ahead: bool = False) -> Scored:
        """A teacher scores only what its path needs; grpo's reference scores all. What was scored
        ahead is not scored again."""
        spec = self.head.spec.alone()
        if self.config.needs_teacher:
            spec = spec.at(self.config.teacher_temperature)
            spec = replace(spec, entropy=spec.entropy or self.passes.teacher_entropy)
        members = batch.members(self.algorithm.frozen_scores(kept_routes(batch, self.config)))
        scored = self._passes_of_frozen(batch, members, spec, self._wanted(), ahead=ahead)
        for index in members:
            if (known := batch.rollouts[index].taught) is not None:
                scored.put(index, known)
        return scored

    def _wanted(self) -> dict[str, bool]:
        """What is asked of a frozen model's pass."""
        return {"logprobs": self.passes.teacher_logprobs, "hidden": self.passes.teacher_hidden}

    def _passes_of_frozen(
        self,
        batch: Batch,
        members: list[int],
        spec: Spec,
        wanted: dict[str, bool],
        *,
        ahead: bool = False,
        anew: bool = False,
    ) -> Scored:
        """Of each model its responses, but for those that were scored ahead (unless ``anew``)."""
        scored = Scored()
        if not self.frozen:  # the student is its own teacher
            scored = self._pass_of(self.student, batch, members, spec, wanted)
        for number, frozen in enumerate(self.frozen):
            its = [i for i in members if self.taught_by(batch.rollouts[i]) == number]
            together = self.topology.ep_size > 1 or frozen.travel is not None
            if (ahead and frozen.travel is not None) or not (its or together):
                continue
            new = [i for i in its if anew or batch.rollouts[i].taught is None]
            with span("teacher scores", responses=len(new)):
                frozen.enter()  # for a divergence also where all was scored ahead
                scored |= self._pass_of(frozen, batch, new, spec, wanted)
                if len(self.frozen) > 1:  # one at a time is on the device
                    frozen.rest(keep_head=bool(self.head.teachers))
        return scored

    def note_alternatives(self, batch: Batch, members: list[int], count: int) -> None:
        """The ``count`` likeliest tokens at each place of some of this replica's responses, under
        the weights that sampled and under the teacher, by passes of their own: for what is written
        down alone. Collective; before the update."""
        if not count:
            return
        spec = replace(self.head.spec.alone(), entropy=False, best=count)
        with span("student scores", responses=len(members)):
            batch.student_best = self.scorer.score(self.student, batch.rollouts, members, spec).best
        if self.config.needs_teacher:
            spec = spec.at(self.config.teacher_temperature)
            wanted = {"logprobs": True, "hidden": False}
            scored = self._passes_of_frozen(batch, members, spec, wanted, anew=True)
            batch.teacher_best, batch.teacher_aside = scored.best, scored.logprobs

    def _score_frozen(self, batch: Batch) -> None:
        """What :meth:`_frozen_scores` says, as the batch takes it."""
        scored = self._frozen_scores(batch)
        for rollout in batch.rollouts.values():
            rollout.taught = None
        means = self._means(batch, scored.logprobs)
        if self.config.needs_teacher:
            batch.teacher_mean, batch.teacher_logprobs = means, scored.logprobs
            batch.teacher_entropy, batch.teacher_hidden = scored.entropy, scored.hidden
            batch.teacher_token_entropy = scored.token_entropy
        else:
            batch.reference_logprobs = scored.logprobs
        batch.mask_unscored(~means.isfinite())

    def _pass_of(
        self,
        model: FrozenModel | models.Student,
        batch: Batch,
        members: list[int],
        spec: Spec,
        wanted: dict[str, bool],
    ) -> Scored:
        """A teacher's or reference's scores of responses that this replica holds."""
        rollouts = read_by_teacher(batch.rollouts, self.config)
        if not isinstance(model, FrozenModel) or model.travel is None:
            return self.scorer.score(model, rollouts, members, spec, **wanted)
        head = replace(self.head, topology=model.topology)
        scorer = replace(self.scorer, topology=model.topology, head=head, together=1)
        return model.travel.score(scorer, model, rollouts, members, spec, **wanted)

    def _score_reference(self, batch: Batch, reference: FrozenModel) -> None:
        """What the teacher has scored, by the initial student; from both, what kl pulls to."""
        members = sorted(batch.teacher_logprobs)
        with span("reference scores", responses=len(members)):
            spec = self.head.spec.alone()
            scored = self.scorer.score(reference, batch.rollouts, members, spec)
        batch.reference_logprobs = scored.logprobs
        batch.mask_unscored(~self._means(batch, scored.logprobs).isfinite())
        batch.target_logprobs = extrapolated(batch, self.config.objective.extrapolation)

    def _means(self, batch: Batch, logprobs: Mapping[int, Tensor]) -> Tensor:
        """[B] mean log-probability per token, of every replica's responses; 0 without a score."""
        means = torch.zeros(len(batch))
        for index, values in logprobs.items():
            means[index] = values.mean()
        if self.topology.dp_size == 1:
            return means
        return torch.tensor(all_sum(means.tolist(), self.topology.dp_group))

    def weigh(self, batch: Batch) -> Weighed:
        """Weights of each response in each term of the loss; the same on every rank."""
        return weigh(batch, self.config)

    def update(
        self, batch: Batch, weighed: Weighed, metrics: StepMetrics, name: tuple[int, int] = (1, 1)
    ) -> None:
        """One optimizer update. ``name`` (step and update, from 1) names what is written down of
        an update that is skipped."""
        self.student.ddp.zero_grad_buffer()
        self.student.optimizer.zero_grad()
        members = batch.members(weighed.streams.active())
        packs = self.scorer.pack(batch.rollouts, members) or self._idle()
        padded = sum(pack.num_tokens - pack.real_tokens for pack in packs)
        metrics.mean("balance/padded_share", padded, sum(pack.num_tokens for pack in packs))
        exact = self.head.spec.divergence is not None
        taught_by = (lambda index: self.taught_by(batch.rollouts[index])) if exact else None
        rows = [
            Rows.of(
                pack,
                batch,
                pack_streams(weighed.streams, batch, self.config, pack),
                self.clip,
                self.topology,
                taught_by=taught_by,
            )
            for pack in packs
        ]
        self.balance.begin(packs)
        with span("forward and backward", update=name[1], packs=len(packs)):
            told = pipeline.forward_backward(
                self.student.ddp, packs, partial(self.head.loss, rows=rows), self.topology
            )
        metrics.mean("balance/experts", *self.balance.measured())
        metrics.maximum("time/wait", self.student.waiting.pop())
        terms = self._learn_of_pass(batch, packs, told)
        observe.observe_update(metrics, batch, weighed, terms)
        metrics.maximum("lr", learning_rate(self.student.optimizer))
        nothing_left = bool(batch.unscored) and not bool(weighed.streams.active().any())
        if not self.guard.accepts(terms, self.student.ddp, nothing_left):
            metrics.maximum("update/skipped", 1.0)
            self._record_skipped(batch, *name, sorted({*members, *batch.unscored}))
            return
        with span("optimizer", update=name[1]):
            _, grad_norm, _ = self.student.optimizer.step()
        self.student.scheduler.step(increment=1)
        metrics.maximum("grad_norm", float(grad_norm))

    def _idle(self) -> list[PackedBatch]:
        """For a replica without a response: the graph runs on every rank."""
        return [filler(self.topology.pack_multiple).to(platform.device())] * self.scorer.together

    def _learn_of_pass(
        self, batch: Batch, packs: list[PackedBatch], told: list[tuple[dict[str, Tensor], Tensor]]
    ) -> dict[str, float]:
        """This replica's share of each term; what the pass knew of the tokens goes to the batch.

        The last stage tells all others.
        """
        counts, device = [pack.num_rows for pack in packs], packs[0].tokens.device
        sums = torch.zeros(len(TERMS), dtype=torch.float64, device=device)
        flat = torch.zeros(sum(counts), len(ROW_COLUMNS), device=device)
        if told:
            for terms, _ in told:
                for name, value in terms.items():
                    sums[TERMS.index(name)] += value
            flat = sum_over_context(torch.cat([rows for _, rows in told]), self.topology)
            sum_over_context(sums, self.topology)
        broadcast_from_last_stage(flat, self.topology)
        for pack, rows in zip(packs, flat.cpu().split(counts), strict=True):
            for index, values in scatter_to_sequences(rows, pack).items():
                observe.note_rows(batch, index, values)
        values = broadcast_from_last_stage(sums, self.topology).tolist()
        return dict(zip(TERMS, values, strict=True))

    def _record_skipped(self, batch: Batch, step: int, number: int, members: list[int]) -> None:
        topology, held = self.topology, [i for i in members if i in batch.rollouts]
        self.guard.record(
            batch,
            step,
            number,
            topology.rank,
            writes=topology.is_replica_first,
            scores=lambda: (
                self.scorer.score(
                    self.student, batch.rollouts, held, self.head.spec.alone()
                ).logprobs
            ),
        )
