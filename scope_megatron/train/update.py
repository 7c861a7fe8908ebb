"""One optimizer update from a batch and its streams."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scope_megatron.config import Config
from scope_megatron.objective.loss import (
    vocab_parallel_logprob,
    vocab_parallel_logprob_and_divergence,
)
from scope_megatron.objective.packing import gather_from_sequences
from scope_megatron.objective.policy import TokenStreams, policy_terms
from scope_megatron.parallel import pipeline
from scope_megatron.parallel.topology import Topology, broadcast_from_last_stage
from scope_megatron.train.algorithms import SequenceStreams
from scope_megatron.train.batch import Batch, Scorer
from scope_megatron.types import PackedBatch

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
    divergence: str | None  # None: the sampled-token estimator
    jsd_beta: float
    topk: int

    @classmethod
    def of(cls, config: Config, student_vocab: int, teacher_vocab: int | None) -> LossSettings:
        clipped = config.algorithm.name == "grpo" or config.train.updates_per_batch > 1
        exact = config.objective.kl != "sampled" and config.algorithm.name in ("scope", "opd")
        return cls(
            temperature=config.rollout.temperature if config.rollout else 1.0,
            teacher_temperature=config.objective.teacher_temperature,
            student_vocab=student_vocab,
            shared_vocab=min(student_vocab, teacher_vocab or student_vocab),
            clip_eps=config.algorithm.clip_eps if clipped else None,
            tis_clip=config.objective.tis_clip,
            divergence=config.objective.kl if exact else None,
            jsd_beta=config.objective.jsd_beta,
            topk=config.objective.topk,
        )


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
        total = sum((term.sum() for term in terms.values()), (logprob * 0.0).sum())
        return total, {name: term.detach().sum() for name, term in terms.items()}

    metrics = pipeline.forward_backward(student, packs, loss)
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
            inplace_backward=True,
        )
        return logprob, None
    return vocab_parallel_logprob_and_divergence(
        logits,
        pack.targets,
        teacher_logits,
        topology.tp_group,
        kind=settings.divergence,
        temperature=settings.temperature,
        teacher_temperature=settings.teacher_temperature,
        vocab_size=settings.shared_vocab,
        beta=settings.jsd_beta,
        topk=settings.topk,
        inplace_backward=True,
    )


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
