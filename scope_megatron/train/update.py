"""One optimizer update from a batch and its streams."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from scope_megatron.config import Config
from scope_megatron.model.head import head_input, output_weight
from scope_megatron.objective.head.hidden import fused_loss
from scope_megatron.objective.head.logits import (
    Divergence,
    vocab_parallel_logprob,
    vocab_parallel_logprob_and_divergence,
)
from scope_megatron.objective.head.shard import Kernel
from scope_megatron.objective.loss import TokenStreams, policy_terms
from scope_megatron.objective.packing import gather_from_sequences
from scope_megatron.parallel import pipeline, platform
from scope_megatron.parallel.topology import Topology, broadcast_from_last_stage
from scope_megatron.train.algorithms import SequenceStreams
from scope_megatron.train.batch import Batch, Scorer
from scope_megatron.types import PackedBatch

# logits of one microbatch on one rank (256 MiB in float32) beyond which objective.head auto fuses
_MANY_LOGITS = 2**26
_STREAMS = ("mle", "kl", "pg", "nll", "kl_ref")


@dataclass(frozen=True)
class LossSettings:
    """The parts of the configuration that the token loss reads."""

    temperature: float
    teacher_temperature: float
    student_vocab: int
    shared_vocab: int
    clip_eps: float | None
    tis_clip: float | None
    divergence: Divergence | None  # None: the sampled-token estimator
    jsd_beta: float
    topk: int
    fused: bool  # the head takes hidden states, and all logits never exist at once
    kernel: Kernel

    @classmethod
    def of(
        cls, config: Config, student_vocab: int, teacher_vocab: int | None, *, capped: bool
    ) -> LossSettings:
        """``capped``: a model squeezes its logits, which the fused head knows nothing of."""
        clipped = config.algorithm.name == "grpo" or config.train.updates_per_batch > 1
        kl, has_teacher = config.objective.kl, config.algorithm.name in ("scope", "opd")
        return cls(
            temperature=config.rollout.temperature if config.rollout else 1.0,
            teacher_temperature=config.objective.teacher_temperature,
            student_vocab=student_vocab,
            shared_vocab=min(student_vocab, teacher_vocab or student_vocab),
            clip_eps=config.algorithm.clip_eps if clipped else None,
            tis_clip=config.objective.tis_clip,
            divergence=kl if kl != "sampled" and has_teacher else None,
            jsd_beta=config.objective.jsd_beta,
            topk=config.objective.topk,
            fused=not capped and _fuses(config, student_vocab),
            kernel=config.objective.kernel,
        )

    @property
    def exact(self) -> dict[str, Any]:
        """What the head is told for an exact divergence."""
        assert self.divergence is not None
        return {
            "kind": self.divergence,
            "temperature": self.temperature,
            "teacher_temperature": self.teacher_temperature,
            "vocab_size": self.shared_vocab,
            "beta": self.jsd_beta,
            "topk": self.topk,
            "kernel": self.kernel,
        }


def _fuses(config: Config, vocab: int) -> bool:
    """Large logits are never made whole, nor half-precision ones: on CUDA the fused head has them
    in float32, as the engine does (see ``setup.engine_head``)."""
    logits = config.train.microbatch_tokens * vocab // config.parallel.tensor
    half = platform.resolve_dtype(config.model.dtype) != torch.float32
    head = config.objective.head
    return head == "fused" or (head == "auto" and (half or logits > _MANY_LOGITS))


def accumulate_gradients(
    student: torch.nn.Module,
    teacher: torch.nn.Module | None,
    batch: Batch,
    streams: SequenceStreams,
    settings: LossSettings,
    scorer: Scorer,
) -> dict[str, float]:
    """Forward and backward over all microbatches; gradients end up reduced over the data ranks.

    Returns this rank's share of each term of the loss (sum them over the data ranks).
    """
    members = batch.members(streams.active()) or [0]  # the graph must run on every rank
    packs = scorer.pack(batch.rollouts, members)
    hidden = _teacher_hidden(teacher, packs, settings)
    rows = [_Rows.of(pack, batch, streams, settings) for pack in packs]

    def loss(logits: Tensor, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        teacher_logits = _teacher_logits(teacher, hidden, index)
        logprob, divergence = _head(logits, teacher_logits, packs[index], settings, scorer.topology)
        terms = rows[index].terms(logprob, divergence, settings)
        return _total(terms, logprob), _sums(terms)

    def loss_of_hidden(output: Tensor, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        teacher_pair = None
        if teacher is not None and hidden:
            theirs = head_input(hidden[index], scorer.topology)
            teacher_pair = (theirs, output_weight(teacher))
        weight = output_weight(student)
        return _fused(output, weight, teacher_pair, packs[index], rows[index], settings, scorer)

    metrics = pipeline.forward_backward(
        student,
        packs,
        loss_of_hidden if settings.fused else loss,
        project=not settings.fused,
    )
    return _broadcast_sums(metrics, scorer.topology, packs[0].tokens.device)


@dataclass(frozen=True)
class _Rows:
    """Everything the token loss needs, laid out on the rows [T] of one pack."""

    streams: TokenStreams
    given: dict[str, Tensor]

    @classmethod
    def of(
        cls, pack: PackedBatch, batch: Batch, streams: SequenceStreams, settings: LossSettings
    ) -> _Rows:
        def lay(values: dict[int, Tensor]) -> Tensor:
            rows = {index: values.get(index) for index in pack.members}
            return gather_from_sequences(rows, pack)

        given = {
            "old_logprob": lay(batch.old_logprobs),
            "teacher_logprob": lay(batch.teacher_logprobs),
            "ref_logprob": lay(batch.reference_logprobs),
        }
        if settings.tis_clip is not None:
            engine = {i: torch.tensor(batch.rollouts[i].engine_logprobs) for i in pack.members}
            given["engine_logprob"] = lay(engine)
        factors = {name: getattr(streams, name) for name in _STREAMS}
        return cls(
            TokenStreams(
                **{
                    name: gather_from_sequences(factor, pack)
                    for name, factor in factors.items()
                    if factor is not None
                }
            ),
            given,
        )

    def part(self, rows: slice) -> _Rows:
        """Of these rows alone."""
        streams = {field.name: getattr(self.streams, field.name) for field in fields(TokenStreams)}
        return _Rows(
            TokenStreams(**{k: v[rows] for k, v in streams.items() if v is not None}),
            {name: value[rows] for name, value in self.given.items()},
        )

    def terms(
        self, logprob: Tensor, divergence: Tensor | None, settings: LossSettings
    ) -> dict[str, Tensor]:
        return policy_terms(
            logprob,
            streams=self.streams,
            divergence=divergence,
            tis_clip=settings.tis_clip,
            clip_eps=settings.clip_eps,
            **self.given,
        )


def _head(
    logits: Tensor,
    teacher_logits: Tensor | None,
    pack: PackedBatch,
    settings: LossSettings,
    topology: Topology,
) -> tuple[Tensor, Tensor | None]:
    """(log-probability, divergence or None) [T] of a pack's rows."""
    if teacher_logits is None:
        logprob = vocab_parallel_logprob(
            logits,
            pack.targets,
            topology.tp_group,
            temperature=settings.temperature,
            vocab_size=settings.student_vocab,
            kernel=settings.kernel,
            inplace_forward=True,
        )
        return logprob, None
    return vocab_parallel_logprob_and_divergence(
        logits,
        pack.targets,
        teacher_logits,
        topology.tp_group,
        inplace_backward=True,
        **settings.exact,
    )


def _fused(
    output: Tensor,
    weight: Tensor,
    teacher: tuple[Tensor, Tensor] | None,
    pack: PackedBatch,
    rows: _Rows,
    settings: LossSettings,
    scorer: Scorer,
) -> tuple[Tensor, dict[str, Tensor]]:
    """(loss, sum of each term) of a pack from the student's hidden states.

    ``weight`` and ``teacher`` are the output weight and, for an exact divergence, the teacher's
    hidden states and output weight.
    """

    def chunk_loss(logprob: Tensor, divergence: Tensor | None, part: slice) -> Tensor:
        return _total(rows.part(part).terms(logprob, divergence, settings), logprob)

    topology = scorer.topology
    plain: dict[str, Any] = {
        "temperature": settings.temperature,
        "vocab_size": settings.student_vocab,
        "kernel": settings.kernel,
    }
    scored = fused_loss(
        head_input(output, topology),
        weight,
        pack.targets,
        chunk_loss,
        topology.tp_group,
        teacher=teacher,
        reduce_hidden=not topology.sequence_parallel,
        **(plain if teacher is None else settings.exact),
    )
    return scored.loss, _sums(rows.terms(scored.logprob, scored.divergence, settings))


def _total(terms: dict[str, Tensor], logprob: Tensor) -> Tensor:
    """The loss; the log-probability is in its graph even where no token has a weight."""
    return sum((term.sum() for term in terms.values()), (logprob * 0.0).sum())


def _sums(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: term.detach().sum() for name, term in terms.items()}


def _teacher_hidden(
    teacher: torch.nn.Module | None, packs: list[PackedBatch], settings: LossSettings
) -> list[Tensor]:
    """The teacher's last hidden states per pack: T x H is kept, never T x V of the whole batch."""
    if settings.divergence is None or teacher is None:
        return []
    return pipeline.hidden_states(teacher, packs)


@torch.no_grad()
def _teacher_logits(
    teacher: torch.nn.Module | None, hidden: list[Tensor], index: int
) -> Tensor | None:
    if not hidden or teacher is None:
        return None
    shared = teacher.share_embeddings_and_output_weights
    weight = teacher.shared_embedding_or_output_weight() if shared else None
    logits, _ = teacher.output_layer(hidden[index], weight=weight)
    return logits.squeeze(1)


def _broadcast_sums(
    metrics: list[dict[str, Tensor]], topology: Topology, device: torch.device
) -> dict[str, float]:
    """Sum of each term over the packs, on every pipeline stage."""
    sums = torch.zeros(len(_STREAMS), dtype=torch.float64, device=device)
    for terms in metrics:
        for name, value in terms.items():
            sums[_STREAMS.index(name)] += value.double()
    values = broadcast_from_last_stage(sums, topology).tolist()
    return dict(zip(_STREAMS, values, strict=True))
