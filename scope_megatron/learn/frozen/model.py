"""A model that is only scored: a teacher, or grpo's reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from megatron.core.models.gpt import GPTModel
from torch import Tensor

from scope_megatron.config.sections.model import EVERY_ROW
from scope_megatron.learn.frozen.output import OutputWeight
from scope_megatron.model.head import output_weight
from scope_megatron.model.streamed import StreamedParameters
from scope_megatron.parallel.topology import Topology

if TYPE_CHECKING:
    from scope_megatron.learn.frozen.travel import Travel


@dataclass(frozen=True)
class FrozenModel:
    """A teacher, or grpo's reference."""

    model: GPTModel
    vocab_size: int
    topology: Topology
    streamed: StreamedParameters | None = None  # teacher.offload
    tags: tuple[str, ...] = (EVERY_ROW,)  # in model.teachers
    travel: Travel | None = None  # where its layout is not the student's
    output: OutputWeight | None = None  # as the student is cut, where a divergence reads it

    def enter(self) -> None:
        """Be ready to be scored."""
        if self.streamed is not None:
            self.streamed.enter()
        if self.output is not None:
            self.output.enter()

    def rest(self, keep_head: bool) -> None:
        """No forward pass for a while; ``keep_head``: its output weight is still asked for."""
        if self.streamed is not None:
            self.streamed.rest() if keep_head and self.travel is None else self.streamed.leave()
        if self.output is not None and not keep_head:
            self.output.leave()

    def output_weight(self) -> Tensor:
        """[V/tp, H] of the student's last stage."""
        return output_weight(self.model) if self.output is None else self.output.tensor

    def tensors(self) -> list[Tensor]:
        """What it holds of the device's memory."""
        held = [*self.model.parameters(), *(self.streamed.buffers() if self.streamed else [])]
        return held + (self.output.buffers() if self.output else [])


def number_of(models: Sequence[FrozenModel], tag: str) -> int:
    """Which of the models scores a row with this tag; a single one scores all rows."""
    if len(models) == 1:
        return 0
    return next(number for number, model in enumerate(models) if tag in model.tags)
