"""What stands on the ranks: the student and frozen models, each in its layout."""

from __future__ import annotations

from dataclasses import dataclass

from scope_megatron.family import ModelShape
from scope_megatron.instruments.plan.activations import Build
from scope_megatron.instruments.plan.facts.shapes import (
    Parameters,
    layer_parameters,
    padded_vocab,
    stage_parameters,
)
from scope_megatron.instruments.plan.layout import RunLayout


@dataclass(frozen=True)
class Models:
    """What stands on the ranks."""

    student: ModelShape
    teacher: ModelShape | None
    build: Build
    exact: bool = False  # the divergence reads the teacher's hidden states and output weight
    teacher_element: int = 0  # bytes of the teachers' parameters; 0: as the student's
    streaming_slots: int = 2  # layers of an offloaded teacher on the device at once
    others: tuple[ModelShape, ...] = ()  # further frozen models
    elements: tuple[int, ...] = ()  # of each frozen model, where they differ

    @property
    def teachers(self) -> tuple[ModelShape, ...]:
        """All frozen models; each scores an equal share."""
        return () if self.teacher is None else (self.teacher, *self.others)

    def element_of(self, number: int) -> int:
        """Bytes of a frozen model's parameters' type."""
        each = self.elements[number] if self.elements else self.teacher_element
        return each or self.build.element

    def vocab(self, tensor: int) -> int:
        return padded_vocab([self.student, *self.teachers], tensor)


@dataclass(frozen=True)
class PlacedTeacher:
    """A frozen model in its layout."""

    shape: ModelShape
    cut: RunLayout
    own: bool  # a layout that is not the student's
    offload: bool
    element: int
    vocab: int  # padded: its own, where it is cut otherwise

    @property
    def expert(self) -> int:
        return self.cut.expert if self.shape.experts else 1


def placed_teachers(models: Models, layout: RunLayout) -> list[PlacedTeacher]:
    """Every frozen model in its layout."""
    found = []
    for number, shape in enumerate(models.teachers):
        told = layout.for_teacher(number)
        cut, own = told.of_teacher, told.cuts_teacher_otherwise
        vocab = padded_vocab([shape], cut.tensor) if own else models.vocab(cut.tensor)
        element = models.element_of(number)
        found.append(PlacedTeacher(shape, cut, own, told.teacher_offload, element, vocab))
    return found


def parameters_of(models: Models, layout: RunLayout, stage: int) -> Parameters:
    """The student's on a rank of the stage."""
    vocab = models.vocab(layout.tensor)
    cut = (layout.tensor, layout.pipeline, layout.expert)
    return stage_parameters(models.student, vocab, *cut, stage)


def teacher_parameters(
    models: Models, layout: RunLayout, stage: int, teacher: PlacedTeacher
) -> Parameters:
    """A teacher's on the fullest of the student's ranks of ``stage``; with its output weight as the
    student is cut, which an exact divergence reads on its last stage."""
    cut = teacher.cut
    found = max(
        (
            stage_parameters(
                teacher.shape, teacher.vocab, cut.tensor, cut.pipeline, teacher.expert, place
            )
            for place in layout.stages_of(cut, stage)
        ),
        key=lambda parameters: parameters.total,
    )
    return found + Parameters(second_output(models, layout, stage, teacher))


def teacher_bytes(
    models: Models, layout: RunLayout, stage: int, placed: list[PlacedTeacher]
) -> float:
    """Of all frozen models that stay on the device."""
    return sum(
        teacher_parameters(models, layout, stage, teacher).total * teacher.element
        for teacher in placed
        if not teacher.offload
    )


def second_output(models: Models, layout: RunLayout, stage: int, teacher: PlacedTeacher) -> int:
    """Elements of a teacher's output weight as the student is cut, beside its own."""
    if not (models.exact and teacher.own and stage == layout.pipeline - 1):
        return 0
    return models.vocab(layout.tensor) * teacher.shape.hidden // layout.tensor


@dataclass(frozen=True)
class Streamed:
    """Bytes on the device of offloaded teachers, one after the other."""

    scored: float  # while this one scores, with what those before it left
    outputs: float  # after that: output weights and last norms that an exact divergence reads


def streamed_teachers(
    models: Models, layout: RunLayout, stage: int, placed: list[PlacedTeacher]
) -> list[Streamed]:
    """While each of the teachers scores; one that stays adds nothing."""
    found, outputs = list[Streamed](), 0.0
    for teacher in placed:
        one, output = _streamed(models, layout, stage, teacher) if teacher.offload else (0.0, 0.0)
        kept = outputs + (output if models.exact else 0.0)
        found.append(Streamed(one + outputs, kept))
        outputs = kept
    return found


def _streamed(
    models: Models, layout: RunLayout, stage: int, teacher: PlacedTeacher
) -> tuple[float, float]:
    shape, cut = teacher.shape, teacher.cut
    places = layout.stages_of(cut, stage)
    embedding = teacher.vocab * shape.hidden // cut.tensor
    unit = layer_parameters(shape, cut.tensor, teacher.expert).total
    if 0 in places and not (shape.tied and cut.pipeline == 1):
        unit = max(unit, embedding)
    output = shape.hidden + embedding if cut.pipeline - 1 in places else 0
    scored = output + models.streaming_slots * unit
    if teacher.own:  # its body leaves the device whole
        output = second_output(models, layout, stage, teacher)
        scored += output
    return scored * teacher.element, output * teacher.element
