"""The acting half of a step where engines have ranks of their own: the training ranks' side.

The same methods as ``actor.py``. Rank 0 says what is to be sampled, the sampling ranks
(``sampler.py``) do it, and every replica's first rank takes in the graded responses that its
replica will train on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

from scope_megatron.config import Config
from scope_megatron.data.dataset import PromptDataset
from scope_megatron.engine.source import ModelParameters
from scope_megatron.learn.models import Student
from scope_megatron.learn.scorer import Scorer
from scope_megatron.logging.metrics import StepMetrics
from scope_megatron.parallel import platform
from scope_megatron.parallel.agree import from_all, from_first, from_main
from scope_megatron.parallel.meeting import job_place
from scope_megatron.parallel.topology import Topology
from scope_megatron.remote.bridge import Bridge
from scope_megatron.remote.carry import CarryOver
from scope_megatron.remote.collect import Inbox
from scope_megatron.remote.inflight import decode_batch, encode_batch
from scope_megatron.remote.messages import (
    EndSampling,
    EngineScores,
    Errand,
    ErrandDone,
    GradedResponse,
    SampleErrand,
    ScoreSequences,
)
from scope_megatron.remote.parameters import ParameterSender
from scope_megatron.remote.post import PeerGone, TrainerPost
from scope_megatron.trace.spans import span
from scope_megatron.train import setup
from scope_megatron.train.acting import Evaluated, Meanwhile
from scope_megatron.train.actor import require_same_scores
from scope_megatron.train.evaluate import join_sets, share_of_replica, summarize
from scope_megatron.train.identity import require_found_alike
from scope_megatron.types import Prompt, Rollout

_T = TypeVar("_T")


class RemoteActor:
    """Engines on other ranks. Every method is collective over the training ranks."""

    def __init__(
        self,
        config: Config,
        topology: Topology,
        found: dict[str, str],
        prompts: Callable[[int], list[Prompt]],
    ) -> None:
        """Meet the sampling ranks. ``found``: what this rank found on its machine, by setting;
        ``prompts``: this replica's of a step.

        Raises ValueError when a sampling rank found something else.
        """
        self.config, self.topology, self._prompts = config, topology, prompts
        place, timeout_s = job_place(), setup.collective_timeout_s(config.faults)
        assert place.store is not None
        self._engines = config.sampling_ranks // config.engine.tensor
        self._evaluations = 0
        self._step = 0  # whose responses were taken last
        self._asked = 0  # the newest step whose responses were asked for
        self._resumed: Errand | None = None  # its responses come from a checkpoint
        self._versions: dict[int, int] = {}  # steps done by the parameters that sample a step
        self._carry = CarryOver(config, topology.is_main)
        self._left: tuple[int, list[int]] = 0, []  # a step, and its groups that the next one takes
        self._stale = 0, 0, 0  # of this step's responses: those of older parameters, all; most age
        self._begun = 0.0  # when this step asked for responses
        # of the step before: seconds of work, and of waiting for what it had asked for
        self._beside: tuple[float, float] | None = None
        self._waited_s = 0.0  # of this step, for responses
        self._tail_s = 0.0  # of that, for groups that the step did not train on
        self._scored_s = 0.0  # of scoring groups as they came
        self._ahead_s = 0.0  # of that, while others were sampled
        self._told: list[ErrandDone] = []  # of the last step, on the first replica
        self.signum = 0
        self.waits_in = frozenset({"rollout", "evaluate", *(["sync"] if config.stale else [])})
        bridge = Bridge(place, timeout_s)
        self._inbox: Inbox | None = None
        if topology.is_replica_first:
            post = TrainerPost(place.store, topology.dp_rank, config.sampling_ranks, timeout_s)
            self._inbox = Inbox(post)
        self._parameters = ParameterSender(bridge, self._inbox if topology.is_main else None)
        self._on_main(lambda inbox: require_found_alike(found, inbox.post.hellos.values()))

    def sample(
        self, prompts: list[Prompt], step: int, meanwhile: Meanwhile | None = None
    ) -> list[Rollout]:
        """A group of graded responses for each prompt, as ``rollout`` says.

        With ``rollout.lag`` 1 they were asked for a step ago, and the next step's are now: with the
        parameters that the engines have. With ``rollout.carry_over`` groups that the step before
        left come first, and some of this step's may be left.
        """
        settings, steps = self.config.rollout, self.config.train.steps
        assert settings is not None
        for ahead in range(step, min(step + settings.lag, steps) + 1):
            if ahead > self._asked:
                self._tell(SampleErrand(_errand(ahead)))
                self._asked, self._versions[ahead] = ahead, step - 1
        self._step, self._begun = step, time.perf_counter()
        if self.topology.ep_size > 1:  # experts' ranks would have to keep step
            meanwhile = None
        if self._carry.most or (meanwhile is not None and not settings.lag):
            sampled = self._collect_groups(step, prompts, settings.group_size, meanwhile)
        else:
            sampled = self._collect(_errand(step), prompts, settings.group_size)
        ages = [step - 1 - r.version for r in sampled if r.version is not None]
        self._stale = sum(age > 0 for age in ages), len(ages), max(ages, default=0)
        return sampled

    def grade(self, sampled: list[Rollout]) -> list[Rollout]:
        """They came with their verdicts."""
        return sampled

    def _collect(self, errand: Errand, prompts: list[Prompt], samples: int) -> list[Rollout]:
        """This replica's responses, once they are all here, on each of its ranks."""
        topology = self.topology

        def take() -> tuple[list[GradedResponse], list[ErrandDone]]:
            assert self._inbox is not None
            found = self._inbox.responses(errand, len(prompts) * samples)
            ends = topology.is_main and errand != self._resumed
            return found, self._inbox.done(errand, self.config.sampling_ranks) if ends else []

        begun = time.perf_counter()
        with span("wait for responses"):
            responses, told = from_first(take, topology.mp_group)
        self._waited_s += time.perf_counter() - begun
        self._note(told)
        version = self._versions.pop(int(errand[1]), None) if errand[0] == "train" else None
        return [r.rollout(prompts[r.position // topology.dp_size], version) for r in responses]

    def _collect_groups(
        self, step: int, prompts: list[Prompt], samples: int, meanwhile: Meanwhile | None
    ) -> list[Rollout]:
        """As :meth:`_collect`, but groups are handed to ``meanwhile`` as they are complete; those
        that the step before left come first."""
        topology, errand = self.topology, _errand(step)
        groups: dict[int, list[Rollout]] = {}
        carried = self._left_before(samples)
        self._score_meanwhile(carried, meanwhile, last=False)
        mine = range(topology.dp_rank, len(prompts) * topology.dp_size, topology.dp_size)
        wanted, spared = self._carry.waits_for(step, mine), self._carry.spared(step)

        def take() -> list[GradedResponse]:
            assert self._inbox is not None
            return self._inbox.finished_groups(errand, samples, wanted - groups.keys())

        while len(groups) < len(wanted) - spared:
            begun = time.perf_counter()
            new: dict[int, list[Rollout]] = {}
            with span("wait for responses"):
                arrived = from_first(take, topology.mp_group)
            for response in arrived:
                prompt = prompts[response.position // topology.dp_size]
                new.setdefault(response.position, []).append(response.rollout(prompt, step - 1))
            groups |= new
            self._waited_s += time.perf_counter() - begun
            last = len(groups) >= len(wanted) - spared
            self._score_meanwhile(list(new.values()), meanwhile, last)
        self._leave(step, [position for position in mine if position not in groups])
        return [r for group in carried for r in group] + [
            rollout for position in sorted(groups) for rollout in groups[position]
        ]

    def _score_meanwhile(
        self, groups: list[list[Rollout]], meanwhile: Meanwhile | None, last: bool
    ) -> None:
        """Complete groups to the frozen model. ``last``: the step waits for no others."""
        if meanwhile is None or not groups:
            return
        begun = time.perf_counter()
        meanwhile(groups)
        scored = time.perf_counter() - begun
        self._scored_s += scored
        self._ahead_s += 0.0 if last else scored

    def _left_before(self, samples: int) -> list[list[Rollout]]:
        """The groups that the step before left: they are complete since it sent its parameters."""
        step, positions = self._left
        if not positions:
            return []
        size = len(positions) * samples

        def take() -> list[GradedResponse]:
            assert self._inbox is not None
            return self._inbox.responses(_errand(step), size)

        prompts, version = self._prompts(step), self._versions.pop(step)
        groups: dict[int, list[Rollout]] = {}
        for response in from_first(take, self.topology.mp_group):
            prompt = prompts[response.position // self.topology.dp_size]
            groups.setdefault(response.position, []).append(response.rollout(prompt, version))
        return list(groups.values())

    def _leave(self, step: int, left: list[int]) -> None:
        """The update begins without the groups ``left``, which are sampled on."""
        self._left = step, left
        self._carry.note(step, left)
        if self._inbox is not None:
            self._inbox.keep(_errand(step), left)
        if not left:
            self._versions.pop(step)
        if not self._carry.most:
            self._end(_errand(step), 0)

    def _end(self, errand: Errand, responses: int) -> None:
        """So many more of this replica's are waited for, then rank 0 hears how long all took."""

        def end() -> list[ErrandDone]:
            assert self._inbox is not None
            if responses:
                self._inbox.wait(errand, responses)
            main = self.topology.is_main
            return self._inbox.done(errand, self.config.sampling_ranks) if main else []

        self._note(from_first(end, self.topology.mp_group))

    def _note(self, told: list[ErrandDone]) -> None:
        self._told = told
        self.signum = max([self.signum, *(done.signum for done in told)])

    def _drain(self) -> None:
        """Take in what was asked for ahead: until then the engines take no parameters."""
        settings = self.config.rollout
        if self._carry.most and self._step:
            self._await_left()
        if self._inbox is None or settings is None or not settings.lag or not self._asked:
            return
        begun = time.perf_counter()
        mine = range(self.topology.dp_rank, settings.prompts_per_step, self.topology.dp_size)
        errand = _errand(self._asked)
        if self._asked > self._step:
            with span("wait for sampling"):
                self._inbox.wait(errand, len(mine) * settings.group_size)
        self._waited_s += time.perf_counter() - begun

    def _await_left(self) -> None:
        """Until the groups that this step left are complete, of all replicas."""
        step, positions = self._left
        settings, begun = self.config.rollout, time.perf_counter()
        assert settings is not None
        with span("wait for the tail"):
            self._end(_errand(step), len(positions) * settings.group_size)
        self._tail_s = time.perf_counter() - begun
        self._waited_s += self._tail_s

    def in_flight(self, done: int) -> dict[str, Any] | None:
        """The responses of the next step at ``rollout.lag`` 1, those that step ``done`` left for it
        with ``rollout.carry_over``; the same on every rank."""
        step = done + 1 if self.config.lag else done
        if not self.config.stale or (self.config.lag and self._asked <= done):
            return None
        held = self._inbox.held(_errand(step)) if self._inbox is not None else []
        everyone = [r for part in from_all(held) for r in part]
        return encode_batch(self.config, step, everyone, done - 1) if everyone else None

    def resume(self, done: int, saved: dict[str, Any]) -> None:
        """Take the responses from the checkpoint that :meth:`in_flight` put there."""
        step = done + 1 if self.config.lag else done
        responses = decode_batch(self.config, step, saved) if self.config.stale else []
        if not responses:
            return
        place, replicas = self.topology.dp_rank, self.topology.dp_size
        mine = [r for r in responses if r.position % replicas == place]
        self._versions[step] = int(saved.get("version", done - 1))
        if self.config.lag:
            self._asked, self._resumed = step, _errand(step)
        else:
            self._left = step, sorted({r.position for r in mine})
        if self._inbox is not None:
            self._inbox.put(mine)

    def observe(self, metrics: StepMetrics) -> None:
        """The step's times of the sampling ranks."""
        beside = time.perf_counter() - self._begun - self._waited_s, self._waited_s
        asked_in, self._beside = (self._beside if self.config.lag else beside), beside
        if self._told and asked_in is not None:
            sampled_s = max(done.sampling_s for done in self._told)
            sampled_s += max(done.grading_s for done in self._told)
            metrics.maximum("sampling/beside_s", asked_in[0])
            metrics.maximum("sampling/hidden_s", max(0.0, sampled_s - asked_in[1]))
        for done in self._told:
            metrics.maximum("sampling/engine_s", done.sampling_s)
            metrics.maximum("sampling/grading_s", done.grading_s)
            metrics.maximum("sampling/graded_s", done.graded_s)
        metrics.maximum("sampling/waited_s", self._waited_s)
        metrics.maximum("sampling/scored_s", self._scored_s)
        metrics.maximum("sampling/ahead_s", self._ahead_s)
        stale, responses, age = self._stale
        metrics.maximum("staleness/steps", float(age))
        if self.config.stale:
            metrics.mean("staleness/share", stale, responses)
        if self._carry.most:
            groups = self.config.prompts_per_step // self.topology.dp_size
            metrics.mean("sampling/left", len(self._left[1]), groups)
            metrics.maximum("sampling/tail_s", self._tail_s)
        self._told = []
        self._waited_s = self._scored_s = self._ahead_s = self._tail_s = 0.0

    def rest(self) -> None:
        """Its memory is its own: it need not sleep."""

    def send_parameters(self, student: Student) -> None:
        """The student's parameters to every engine, from the ranks that hold them."""
        self._drain()
        platform.release_cached_memory()
        bucket = self.config.engine.bucket_mib * 2**20
        with span("send parameters"):
            self._parameters.send(ModelParameters(student.model, student.hf, self.topology, bucket))

    def check_parameters(
        self, student: Student, rollouts: list[Rollout], scorer: Scorer
    ) -> tuple[float, float]:
        """As :class:`Acting` says, of responses of the first replica, by every engine."""
        mine = rollouts if self.topology.dp_rank == 0 else []
        chosen = [r for r in mine if r.token_ids][: self.config.engine.check_samples]
        self._tell(ScoreSequences([[*r.prompt.token_ids, *r.token_ids] for r in chosen]))
        spec = scorer.head.spec.alone().at(1.0)
        ours = scorer.score(student, dict(enumerate(chosen)), list(range(len(chosen))), spec)
        theirs = self._on_main(lambda inbox: self._scores(inbox))
        return require_same_scores(self.config, chosen, ours.logprobs, theirs)

    def _scores(self, inbox: Inbox) -> list[list[list[float]]]:
        return [inbox.next(EngineScores).logprobs for _ in range(self._engines)]

    def evaluate(self, sets: dict[str, PromptDataset]) -> Evaluated:
        """See :class:`Acting`."""
        settings = self.config.evaluation
        self._evaluations += 1
        values: dict[str, dict[str, float]] = {}
        samples: dict[str, list[Rollout]] = {}
        errands: dict[str, Errand] = {name: ("eval", self._evaluations, name) for name in sets}
        for errand in errands.values():
            self._tell(SampleErrand(errand))
        for name, dataset in sets.items():
            prompts = share_of_replica(dataset, settings.limit, self.topology)
            samples[name] = self._collect(errands[name], prompts, settings.samples)
            values[name] = summarize(samples[name], settings.samples, self.topology)
        return join_sets(values), samples

    def _tell(self, command: SampleErrand | ScoreSequences | EndSampling) -> None:
        if self.topology.is_main and self._inbox is not None:
            self._inbox.post.send(command)

    def _on_main(self, ask: Callable[[Inbox], _T]) -> _T:
        """The result of what rank 0 asks, on every rank."""

        def asked() -> _T:
            assert self._inbox is not None
            return ask(self._inbox)

        return from_main(asked)

    def close(self) -> None:
        """The sampling ranks end."""
        try:
            self._tell(EndSampling())
        except PeerGone:
            pass  # the run ends because of it
        if self._inbox is not None:
            self._inbox.post.close()


def _errand(step: int) -> Errand:
    """To sample a training step's responses."""
    return "train", step
