"""Who holds the memory of a rank's device: student, gradients, optimizer, frozen model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from scope_megatron.learn.frozen.model import FrozenModel
from scope_megatron.learn.models import Student
from scope_megatron.parallel.memory import Tenants
from scope_megatron.parallel.optimizer import state_tensors


def add_tenants(
    tenants: Tenants,
    student: Student,
    frozen: Sequence[FrozenModel],
    reference: FrozenModel | None = None,
) -> None:
    """Count these models and what trains the student. ``frozen`` are called the teacher
    together, grpo's reference too; ``reference`` is one beside a teacher."""
    tenants.add("student", student.model.parameters)
    tenants.add("gradients", lambda: _gradients(student))
    tenants.add("optimizer", lambda: state_tensors(student.optimizer))
    if frozen:
        tenants.add("teacher", lambda: (tensor for model in frozen for tensor in model.tensors()))
    if reference is not None:
        tenants.add("reference", reference.tensors)


def _gradients(student: Student) -> Iterator[Tensor]:
    for buffer in [*student.ddp.buffers, *student.ddp.expert_parallel_buffers]:
        yield buffer.grad_data
    yield from (p.grad for p in student.model.parameters() if p.grad is not None)
