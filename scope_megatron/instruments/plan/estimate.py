"""A run as a whole: its models, layout and work on a GPU, with memory and time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from scope_megatron.config import Config
from scope_megatron.config.sections.model import teacher_setting
from scope_megatron.family import ModelShape
from scope_megatron.instruments.plan.activations import FLOAT, build_for
from scope_megatron.instruments.plan.facts.figures import Efficiencies, GpuFigures
from scope_megatron.instruments.plan.facts.shapes import NamedShape, find_shape
from scope_megatron.instruments.plan.layout import RunLayout, frozen_entries
from scope_megatron.instruments.plan.memory import RankMemory, run_memory
from scope_megatron.instruments.plan.models import Models
from scope_megatron.instruments.plan.seconds.timing import StepTime, step_time, tokens_per_second
from scope_megatron.instruments.plan.workload import Workload


@dataclass(frozen=True)
class RunPlan:
    """What was planned. Memory and time are computed when they are asked for."""

    models: Models
    layout: RunLayout
    work: Workload
    gpu: GpuFigures
    reached: Efficiencies

    @cached_property
    def ranks(self) -> list[RankMemory]:
        """A rank of each pipeline stage."""
        return run_memory(self.models, self.layout, self.work, self.gpu.memory)

    @cached_property
    def fullest(self) -> RankMemory:
        return max(self.ranks, key=lambda rank: rank.peak)

    @property
    def shown(self) -> list[RankMemory]:
        """The fullest rank of those that train, and one that only samples, where there are any."""
        training = [rank for rank in self.ranks if not rank.samples]
        return [max(training, key=lambda rank: rank.peak)] + [r for r in self.ranks if r.samples]

    @property
    def over(self) -> int:
        """Bytes that are missing; 0: it fits, the engine's cache included."""
        missing = max(0, self.fullest.peak - self.gpu.memory)
        return max(missing, self.cache_missing)

    @property
    def cache_missing(self) -> int:
        """Bytes that the engine lacks for its parameters and one longest sequence."""
        if not self.work.samples:
            return 0
        from scope_megatron.instruments.plan.memory import cache_bytes_per_token, engine_bytes

        engine = engine_bytes(self.models, self.layout, self.gpu.memory)
        element = self.models.build.element
        each = cache_bytes_per_token(self.models.student, self.layout, element)
        return max(0, int(self.work.longest * each - engine["kv cache"]))

    @property
    def fits(self) -> bool:
        return self.over == 0

    @cached_property
    def time(self) -> StepTime:
        return step_time(self.models, self.layout, self.work, self.gpu, self.reached)

    @property
    def speed(self) -> float:
        """Response tokens per second and GPU."""
        return tokens_per_second(self.work, self.time, self.layout.gpus)


def models_of(config: Config, online: bool = False) -> tuple[Models, list[NamedShape]]:
    """The models that stand on the ranks, and what they are. Raises ConfigError."""
    student = find_shape(config.model.student, "model.student", online)
    named, shapes, elements = [student], list[ModelShape](), list[int]()
    for tag, entry in frozen_entries(config):
        if tag in config.teachers:
            named.append(find_shape(entry.path, teacher_setting(tag), online))
            shapes.append(named[-1].shape)
        else:  # grpo's reference, what extrapolation begins at
            shapes.append(student.shape)
        elements.append({"float32": FLOAT, "bfloat16": 2}.get(str(entry.dtype), 0))
    half = config.model.dtype != "float32"
    models = Models(
        student.shape,
        shapes[0] if shapes else None,
        build_for(True, half, student.shape),
        exact=config.needs_teacher and config.objective.kl != "sampled",
        others=tuple(shapes[1:]),
        elements=tuple(elements),
    )
    return models, named
