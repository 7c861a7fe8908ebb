"""A graded batch of responses with everything the losses need to know about each of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from scope_megatron.config import Config
from scope_megatron.model.head import head_input, output_weight
from scope_megatron.objective.head.hidden import fused_logprob
from scope_megatron.objective.head.logits import vocab_parallel_logprob
from scope_megatron.objective.head.shard import Kernel
from scope_megatron.objective.packing import build, filler, pack, scatter_to_sequences
from scope_megatron.objective.routing import Routes, route
from scope_megatron.parallel import pipeline, platform
from scope_megatron.parallel.topology import Topology
from scope_megatron.types import PackedBatch, Rollout


@dataclass
class Batch:
    """B responses of whole groups, and per-response log-probabilities of their tokens.

    ``group`` [B] numbers the prompts, ``lengths`` [B] counts response tokens. The log-probability
    tensors are float32 [response length] on the CPU; a response that was not scored is absent.
    """

    rollouts: list[Rollout]
    group: Tensor
    lengths: Tensor
    routes: Routes
    old_logprobs: dict[int, Tensor] = field(default_factory=dict)  # behaviour policy
    teacher_logprobs: dict[int, Tensor] = field(default_factory=dict)
    reference_logprobs: dict[int, Tensor] = field(default_factory=dict)
    unscored: set[int] = field(default_factory=set)  # masked: a score of theirs is not finite

    def members(self, mask: Tensor) -> list[int]:
        """Indices of the responses a mask [B] selects."""
        return mask.nonzero().flatten().tolist()

    def mask_unscored(self, scores: dict[int, Tensor]) -> None:
        """Take responses whose scores are not finite out of both paths: no score is made up."""
        bad = [index for index, values in scores.items() if not bool(values.isfinite().all())]
        for index in bad:
            del scores[index]
            self.routes.correct[index] = self.routes.incorrect[index] = False
            self.routes.masked[index] = True
            self.unscored.add(index)

    def parts(self, count: int) -> list[Batch]:
        """The groups dealt into ``count`` batches."""
        return [self] if count == 1 else [self._part(start, count) for start in range(count)]

    def _part(self, start: int, count: int) -> Batch:
        kept = self.members(self.group % count == start)
        place = {index: new for new, index in enumerate(kept)}

        def renumbered(scores: dict[int, Tensor]) -> dict[int, Tensor]:
            return {place[i]: values for i, values in scores.items() if i in place}

        routes = self.routes
        return Batch(
            rollouts=[self.rollouts[i] for i in kept],
            group=self.group[kept] // count,
            lengths=self.lengths[kept],
            routes=Routes(routes.correct[kept], routes.incorrect[kept], routes.masked[kept]),
            old_logprobs=renumbered(self.old_logprobs),
            teacher_logprobs=renumbered(self.teacher_logprobs),
            reference_logprobs=renumbered(self.reference_logprobs),
            unscored={place[i] for i in self.unscored if i in place},
        )

    def mean_logprob(self, logprobs: dict[int, Tensor]) -> Tensor:
        """[B] mean log-probability per token; 0 for responses that were not scored."""
        means = torch.zeros(len(self.rollouts))
        for index, values in logprobs.items():
            means[index] = values.mean()
        return means


def make_batch(rollouts: list[Rollout], truncated: Literal["incorrect", "mask"]) -> Batch:
    """Route graded rollouts. ``rollouts`` holds whole groups, side by side."""
    starts = torch.tensor([rollout.sample == 0 for rollout in rollouts], dtype=torch.int64)
    rewards = [reward(rollout) for rollout in rollouts]
    lengths = [len(rollout.token_ids) for rollout in rollouts]
    return Batch(
        rollouts=rollouts,
        group=starts.cumsum(0) - 1,
        lengths=torch.tensor(lengths, dtype=torch.int64),
        routes=route(rewards, [r.finished for r in rollouts], lengths, truncated),
    )


def reward(rollout: Rollout) -> float | None:
    """R_i of the paper: 1 or 0, None when nobody judged the response."""
    if rollout.verdict is None or not rollout.verdict.judged:
        return None
    return float(rollout.verdict == "correct")


@dataclass(frozen=True)
class Scorer:
    """Scores and packs sequences the way this run is laid out."""

    topology: Topology
    microbatch_tokens: int
    fused: bool  # from hidden states, without all logits
    kernel: Kernel

    @classmethod
    def of(cls, config: Config, topology: Topology, *, fused: bool) -> Scorer:
        return cls(topology, config.train.microbatch_tokens, fused, config.objective.kernel)

    def pack(self, rollouts: list[Rollout], members: list[int]) -> list[PackedBatch]:
        """The chosen responses in microbatches of bounded size, on this rank's device."""
        return [packed.to(platform.device()) for packed in self._lay_out(rollouts, members)]

    def _lay_out(self, rollouts: list[Rollout], members: list[int]) -> list[PackedBatch]:
        """:meth:`pack` in host memory.

        With expert parallelism, collective: every replica gets the same number of microbatches,
        since they pass through every layer together.
        """
        multiple = self.topology.tp_size if self.topology.sequence_parallel else 1
        sequences = [(r.prompt.token_ids, r.token_ids) for r in rollouts]
        bins = pack([rollouts[i].length for i in members], self.microbatch_tokens - multiple + 1)
        packs = [build(sequences, [members[i] for i in bin_], multiple) for bin_ in bins]
        if self.topology.ep_size > 1:
            packs += [filler(multiple)] * (self._most(len(packs)) - len(packs))
        return packs

    def _most(self, count: int) -> int:
        """The largest of the replicas' counts."""
        counts = torch.tensor(count, device=platform.device())
        dist.all_reduce(counts, op=dist.ReduceOp.MAX, group=self.topology.dp_group)
        return int(counts)

    def logprobs(
        self,
        model: torch.nn.Module,
        rollouts: list[Rollout],
        members: list[int],
        *,
        temperature: float,
        vocab_size: int,
    ) -> dict[int, Tensor]:
        """log pi(token) of the chosen responses' tokens under ``model``, from a forward pass."""
        on_host = self._lay_out(rollouts, members)
        packs = [packed.to(platform.device()) for packed in on_host]

        def rows(output: Tensor, index: int) -> Tensor:
            targets, group = packs[index].targets, self.topology.tp_group
            if not self.fused:
                return vocab_parallel_logprob(
                    output,
                    targets,
                    group,
                    temperature=temperature,
                    vocab_size=vocab_size,
                    kernel=self.kernel,
                )
            return fused_logprob(
                head_input(output, self.topology),
                output_weight(model),
                targets,
                group,
                temperature=temperature,
                vocab_size=vocab_size,
                kernel=self.kernel,
            )

        scores: dict[int, Tensor] = {}
        scored = pipeline.score(model, packs, rows, self.topology, project=not self.fused)
        for values, packed in zip(scored, on_host, strict=True):
            scores.update(scatter_to_sequences(values.cpu(), packed))
        return scores
