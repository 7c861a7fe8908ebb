"""Log-probabilities of responses by a forward-only pass, at any layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from scope_megatron.learn.head import Head, Model
from scope_megatron.objective.head.spec import Spec
from scope_megatron.objective.packing import build, filler, pack, scatter_to_sequences
from scope_megatron.parallel import pipeline, platform
from scope_megatron.parallel.agree import all_max
from scope_megatron.parallel.second import using
from scope_megatron.parallel.topology import Topology
from scope_megatron.types import PackedBatch, Rollout


@dataclass
class Scored:
    """Results of a forward-only pass, by response."""

    logprobs: dict[int, Tensor] = field(default_factory=dict)  # float32 [length], on the CPU
    entropy: dict[int, float] = field(default_factory=dict)  # mean per token; where asked for
    token_entropy: dict[int, Tensor] = field(default_factory=dict)  # float32 [length], likewise
    hidden: dict[int, Tensor] = field(default_factory=dict)  # last stage, where kept
    # float32 [length, 2, k] on the CPU, where asked for: the likeliest tokens' numbers, falling,
    # and their log-probabilities
    best: dict[int, Tensor] = field(default_factory=dict)

    def __ior__(self, other: Scored) -> Scored:
        for name, values in vars(self).items():
            values |= getattr(other, name)
        return self

    def of(self, index: int) -> Scored:
        """The results of one response, under the number 0. Hidden states are on the host: they may
        go to another rank."""
        alone = Scored()
        for name, values in vars(self).items():
            if index in values:
                value = values[index]
                getattr(alone, name)[0] = value.cpu() if name == "hidden" else value
        return alone

    def put(self, index: int, alone: Scored) -> None:
        """Add what :meth:`of` took out."""
        for name, values in vars(alone).items():
            for value in values.values():
                moved = value.to(platform.device()) if name == "hidden" else value
                getattr(self, name)[index] = moved

    def responses(self) -> set[int]:
        """Those that there is anything of."""
        return {index for values in vars(self).values() for index in values}


@dataclass(frozen=True)
class Scorer:
    """Packs sequences the way this run is laid out, and scores them."""

    topology: Topology
    microbatch_tokens: int
    head: Head
    together: int = 1  # microbatches come in groups of so many: a virtual pipeline's stages

    def pack(self, rollouts: Mapping[int, Rollout], members: Sequence[int]) -> list[PackedBatch]:
        """The chosen responses in microbatches of bounded size, on this rank's device.

        With expert parallelism, collective: every replica gets the same number of microbatches,
        since they pass through every layer together.
        """
        multiple = self.topology.pack_multiple
        sequences = {i: (rollouts[i].prompt.token_ids, rollouts[i].token_ids) for i in members}
        budget = self.microbatch_tokens - multiple + 1
        bins = pack([rollouts[i].length for i in members], budget, self.together)
        vocab = self.head.student.vocab_size  # no teacher has fewer tokens
        packs = [build(sequences, [members[i] for i in bin_], multiple, vocab) for bin_ in bins]
        if self.topology.ep_size > 1:
            (most,) = all_max([len(packs)], self.topology.dp_group)
            packs += [filler(multiple)] * (int(most) - len(packs))
        packs += [filler(multiple)] * (-len(packs) % self.together)
        return [packed.to(platform.device()) for packed in packs]

    def score(
        self,
        model: Model,
        rollouts: Mapping[int, Rollout],
        members: Sequence[int],
        spec: Spec,
        *,
        logprobs: bool = True,
        hidden: bool = False,
    ) -> Scored:
        """log pi(token) of the chosen responses' tokens under ``model``, from a forward pass.

        ``hidden`` keeps the last hidden states of their rows, cut over the tensor ranks; without
        ``logprobs`` nothing is multiplied with the output weight.
        """
        packs = self.pack(rollouts, members)
        scored = Scored()

        def rows(output: Tensor, index: int) -> Tensor:
            if hidden:
                kept = self.head.keep(output, packs[index])
                scored.hidden.update(scatter_to_sequences(kept, packs[index]))
            if not logprobs:
                return torch.empty(packs[index].num_rows, 0, device=output.device)
            return self.head.scores(output, packs[index], model, spec)

        best = spec.best_columns(model.vocab_size) if logprobs else 0
        columns = 1 + spec.with_entropy + best if logprobs else 0
        with using(self.topology):
            passes = pipeline.score(model.model, packs, rows, self.topology, columns=columns)
        for values, packed in zip(passes, packs, strict=True):
            for index, part in scatter_to_sequences(values.cpu(), packed).items():
                if logprobs:
                    scored.logprobs[index] = part[:, 0].contiguous()
                if logprobs and spec.with_entropy and len(part):
                    scored.entropy[index] = float(part[:, 1].mean())
                    scored.token_entropy[index] = part[:, 1].contiguous()
                if best:
                    scored.best[index] = part[:, -best:].unflatten(1, (2, best // 2)).contiguous()
        return scored
