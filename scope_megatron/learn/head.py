"""The loss head of a run, chosen once: from the last hidden states to scores and to the loss.

``LogitsHead`` makes all logits of a part's rows at once, ``HiddenHead`` a block of rows at a time,
fused with the output projection. Both compute the same. Rows of prompts never meet the output
weight, and only rows that take a divergence meet the teacher's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from scope_megatron.config import Config
from scope_megatron.learn.frozen.model import FrozenModel
from scope_megatron.learn.models import Student
from scope_megatron.learn.rows import Part, Rows
from scope_megatron.model.head import cap, caps_logits, head_input, output_weight
from scope_megatron.objective.head.best import best_tokens
from scope_megatron.objective.head.hidden import (
    TeacherHead,
    fused_best,
    fused_loss,
    fused_scores,
)
from scope_megatron.objective.head.logits import Scores, vocab_parallel_scores, vocab_parallel_terms
from scope_megatron.objective.head.shard import Shard
from scope_megatron.objective.head.spec import Spec
from scope_megatron.parallel import platform
from scope_megatron.parallel.context import own_rows, spread_rows, sum_over_context
from scope_megatron.parallel.topology import Topology
from scope_megatron.types import PackedBatch

# logits of one microbatch on one rank (256 MiB in float32) beyond which objective.head auto fuses
_MANY_LOGITS = 2**26
# what the training pass tells of every row; NaN where it does not know, 0 where another rank does
ROW_COLUMNS = ("logprob", "teacher_logprob", "entropy", "divergence")
LossResult = tuple[Tensor, Tensor, tuple[dict[str, Tensor], Tensor]]


class Model(Protocol):
    """A student or a frozen model."""

    @property
    def model(self) -> torch.nn.Module: ...

    @property
    def vocab_size(self) -> int: ...


@dataclass(frozen=True)
class Head(ABC):
    """Base class of both heads. ``spec`` is the training pass's."""

    spec: Spec
    topology: Topology
    student: Student
    teachers: tuple[FrozenModel, ...]  # of the divergence; empty: none is computed

    @abstractmethod
    def loss(self, output: Tensor, index: int, rows: list[Rows]) -> LossResult:
        """(loss, 0 tokens, (sum of each term, [R, 4] ROW_COLUMNS)) of pack ``index``.

        ``output``: the student's last hidden states, as the pipeline gives them. Its signature is
        that of megatron-core's loss functions.
        """

    def scores(self, output: Tensor, pack: PackedBatch, model: Model, spec: Spec) -> Tensor:
        """[R, 1] log-probability, [R, 2] with the entropy, of the pack's rows, and behind them the
        2k of ``best_tokens`` where ``spec.best`` asks for it; zeros for another context rank's."""
        numbers, places = own_rows(pack, self.topology)
        states = head_input(output, self.topology)[places]
        scored = self._scores(states, pack.targets[pack.rows[numbers]], model, spec)
        values = torch.stack([part for part in scored if part is not None], 1)
        if spec.best:
            values = torch.cat([values, self._best(states, model, spec).to(values.dtype)], 1)
        return spread_rows(values, numbers, pack.num_rows)

    @abstractmethod
    def _scores(self, states: Tensor, targets: Tensor, model: Model, spec: Spec) -> Scores:
        """Of rows [n, H] under the model's output weight."""

    @abstractmethod
    def _best(self, states: Tensor, model: Model, spec: Spec) -> Tensor:
        """``best_tokens`` [n, 2k] of the same."""

    def keep(self, output: Tensor, pack: PackedBatch) -> Tensor:
        """[R, H/tp] hidden states of the rows, of which each tensor rank keeps a slice; context
        ranks keep all rows: another pack may cut them otherwise."""
        numbers, places = own_rows(pack, self.topology)
        states, topology = head_input(output, self.topology)[places], self.topology
        kept = states.tensor_split(topology.tp_size, 1)[topology.tp_rank].contiguous()
        return sum_over_context(spread_rows(kept, numbers, pack.num_rows), topology)

    def _taught(self, part: Part) -> TeacherHead | None:
        """The teacher's hidden states [n, H_t] and output weight of a part; None without."""
        if part.teacher_hidden is None:
            return None
        weight = self.teachers[part.teacher].output_weight()
        whole = _join(part.teacher_hidden, weight.shape[1], self.topology)
        return whole, weight

    def _shard(self, weight: Tensor, vocab_size: int) -> Shard:
        return Shard.of(weight.shape[0], vocab_size, self.topology.tp_group)

    def _shared_vocab(self, part: Part) -> int:
        """Tokens that both models know: a divergence is one over these."""
        return min(self.student.vocab_size, self.teachers[part.teacher].vocab_size)


class LogitsHead(Head):
    """All logits of a part at once; the backward has them still. Knows capped logits (Gemma 2)."""

    def loss(self, output: Tensor, index: int, rows: list[Rows]) -> LossResult:
        states = head_input(output, self.topology, copies=True)
        told = _Told.empty(rows[index], output)
        weight = output_weight(self.student.model)
        for part in rows[index].parts:
            logits = cap(states[part.positions] @ weight.t(), self.student.model)
            taught = self._taught(part)
            if taught is None:
                shard = self._shard(weight, self.student.vocab_size)
                spec = replace(self.spec.alone(), inplace_forward=True)
                terms = vocab_parallel_terms(logits, part.targets, None, shard, spec)
            else:
                with torch.no_grad():
                    teacher = self.teachers[part.teacher].model
                    teacher_logits = cap(taught[0] @ taught[1].t(), teacher)
                shard = self._shard(weight, self._shared_vocab(part))
                spec = replace(self.spec, inplace_backward=True)
                terms = vocab_parallel_terms(logits, part.targets, teacher_logits, shard, spec)
            losses = part.losses(terms.logprob, terms.divergence)
            told.add(sum(losses.values(), terms.logprob * 0.0).sum(), losses)
            told.tell(part, terms.logprob, terms.teacher_logprob, terms.entropy, terms.divergence)
        return told.result()

    def _scores(self, states: Tensor, targets: Tensor, model: Model, spec: Spec) -> Scores:
        weight = output_weight(model.model)
        logits = cap(states @ weight.t(), model.model)
        return vocab_parallel_scores(logits, targets, self._shard(weight, model.vocab_size), spec)

    def _best(self, states: Tensor, model: Model, spec: Spec) -> Tensor:
        weight = output_weight(model.model)
        logits = cap(states @ weight.t(), model.model)
        return best_tokens(logits, self._shard(weight, model.vocab_size), spec)


class HiddenHead(Head):
    """A block of rows at a time: all logits never exist, and the loss is differentiated at once."""

    def loss(self, output: Tensor, index: int, rows: list[Rows]) -> LossResult:
        states = head_input(output, self.topology)
        told = _Told.empty(rows[index], output)
        weight = output_weight(self.student.model)
        for part in rows[index].parts:
            taught = self._taught(part)
            vocab = self.student.vocab_size if taught is None else self._shared_vocab(part)
            scored = fused_loss(
                states[part.positions],
                weight,
                part.targets,
                part.total,
                self._shard(weight, vocab),
                self.spec,
                taught,
            )
            told.add(scored.loss, part.losses(scored.logprob, scored.divergence))
            told.tell(
                part, scored.logprob, scored.teacher_logprob, scored.entropy, scored.divergence
            )
        return told.result()

    def _scores(self, states: Tensor, targets: Tensor, model: Model, spec: Spec) -> Scores:
        weight = output_weight(model.model)
        shard = self._shard(weight, model.vocab_size)
        return fused_scores(states, weight, targets, shard, spec)

    def _best(self, states: Tensor, model: Model, spec: Spec) -> Tensor:
        weight = output_weight(model.model)
        return fused_best(states, weight, self._shard(weight, model.vocab_size), spec)


def build_head(
    config: Config, topology: Topology, student: Student, frozen: tuple[FrozenModel, ...]
) -> Head:
    """The head that ``objective.head`` asks for; ``frozen`` may also be grpo's reference."""
    objective = config.objective
    teachers = frozen if config.needs_teacher and objective.kl != "sampled" else ()
    spec = Spec(
        temperature=config.student_temperature,
        teacher_temperature=config.teacher_temperature,
        divergence=None if not teachers or objective.kl == "sampled" else objective.kl,
        beta=objective.jsd_beta,
        topk=objective.topk,
        topk_of=objective.topk_of,
        topk_tail=objective.topk_tail,
        entropy_threshold=objective.entropy_threshold,
        kernel=objective.kernel,
        entropy=config.logging.entropy,
        reduce_hidden=not topology.sequence_parallel,
    )
    models: list[Model] = [student, *frozen]
    capped = any(caps_logits(m.model) for m in models)
    fused = fuses(config, student.vocab_size, capped=capped)
    return (HiddenHead if fused else LogitsHead)(spec, topology, student, teachers)


def fuses(config: Config, vocab: int, *, capped: bool) -> bool:
    """Whether the head takes hidden states, block by block.

    Large logits are never made whole, nor half-precision ones: on CUDA the fused head has them
    in float32, as the engine does (see ``setup.engine_head``)."""
    parallel = config.parallel
    logits = config.train.microbatch_tokens * vocab // (parallel.tensor * parallel.context)
    half = platform.resolve_dtype(config.model.dtype) != torch.float32
    head = config.objective.head
    wanted = head == "fused" or (head == "auto" and (half or logits > _MANY_LOGITS))
    return wanted and not capped  # it knows nothing of a cap


@dataclass
class _Told:
    """Gathers what the parts of a pack give."""

    loss: list[Tensor]
    sums: dict[str, Tensor]
    rows: Tensor  # [R, 4]

    @classmethod
    def empty(cls, rows: Rows, output: Tensor) -> _Told:
        columns, device = len(ROW_COLUMNS), output.device
        known = torch.full((len(rows.own), columns), torch.nan, dtype=torch.float32, device=device)
        return cls([], {}, spread_rows(known, rows.own, rows.count))

    def add(self, loss: Tensor, losses: dict[str, Tensor]) -> None:
        self.loss.append(loss)
        for name, term in losses.items():
            value = term.detach().sum(dtype=torch.float64)
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def tell(self, part: Part, *columns: Tensor | None) -> None:
        for place, column in enumerate(columns):
            if column is not None:
                self.rows[part.index, place] = column.detach().float()

    def result(self) -> LossResult:
        loss = torch.stack(self.loss).sum()
        return loss, torch.zeros((), dtype=torch.int, device=loss.device), (self.sums, self.rows)


def _join(local: Tensor, width: int, topology: Topology) -> Tensor:
    """The slices [n, H/tp] of all tensor ranks -> [n, H]."""
    if topology.tp_size == 1:
        return local
    sizes = [len(part) for part in torch.arange(width).tensor_split(topology.tp_size)]
    parts = [local.new_empty(len(local), size) for size in sizes]
    dist.all_gather(parts, local, group=topology.tp_group)
    return torch.cat(parts, 1)
