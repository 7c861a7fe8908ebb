"""How student, teacher and engine are cut over the ranks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from scope_megatron.config import Config
from scope_megatron.family import ModelShape

RecomputeMode = Literal["none", "selective", "full"]
OptimizerStates = Literal["float32", "parameters"]


@dataclass(frozen=True)
class RunLayout:
    """Sizes and placements of a run, this project's settings by their meaning.

    ``virtual`` is planned by formula.
    """

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    expert: int = 1
    context: int = 1  # ranks that share a sequence
    virtual: int = 1  # parts of a model that each pipeline stage holds
    sequence: bool = False
    recompute: RecomputeMode = "none"
    recompute_layers: int | None = None  # full: of each stage; None: all
    distributed: bool = False
    overlap: bool = False  # gradients are summed beside the backward
    optimizer_offload: bool = False  # between updates
    optimizer_states: OptimizerStates = "float32"  # parameters: all in the parameters' type
    microbatch: int = 4096  # tokens
    engine_tensor: int = 1
    engine_share: float = 0.45  # of a GPU's memory
    engine_sleeps: bool = True
    max_num_seqs: int = 256
    sampling: int = 0  # ranks that only sample, besides those that train
    lag: int = 0  # steps between the parameters that sample and those that train
    teacher_tensor: int = 0  # 0: as the student
    teacher_pipeline: int = 0
    teacher_context: int = 1  # these where one of the two above is given
    teacher_expert: int = 1
    teacher_sequence: bool = False
    teacher_offload: bool = False  # in host memory but while it scores

    @property
    def ranks(self) -> int:
        return self.tensor * self.pipeline * self.data * self.context

    @property
    def gpus(self) -> int:
        """Ranks of both kinds; ``ranks`` are those that train."""
        return self.ranks + self.sampling

    @property
    def engine_ranks(self) -> int:
        return self.sampling or self.ranks

    @property
    def engines(self) -> int:
        return self.engine_ranks // self.engine_tensor

    @property
    def of_teacher(self) -> RunLayout:
        """The layout that the teacher is cut by."""
        if not self.cuts_teacher_otherwise:
            return self
        tensor, pipeline = self.teacher_tensor or 1, self.teacher_pipeline or 1
        return replace(
            self,
            tensor=tensor,
            pipeline=pipeline,
            context=self.teacher_context,
            expert=self.teacher_expert,
            sequence=self.teacher_sequence,
            data=max(1, self.ranks // (tensor * pipeline * self.teacher_context)),
        )

    @property
    def cuts_teacher_otherwise(self) -> bool:
        """Whether it has a layout of its own."""
        return bool(self.teacher_tensor or self.teacher_pipeline)

    def teacher_stages(self, stage: int) -> range:
        """The teacher's stages on ranks of the student's stage."""
        each, theirs = self.ranks // self.pipeline, self.ranks // self.of_teacher.pipeline
        return range(stage * each // theirs, ((stage + 1) * each - 1) // theirs + 1)

    def state(self, element: int) -> int:
        """Bytes of each of Adam's states for parameters of ``element`` bytes."""
        return element if self.optimizer_states == "parameters" else 4

    gradient = state  # bytes of a gradient: of the same type

    @property
    def expert_replicas(self) -> int:
        """Ranks that hold the same shard of the experts."""
        stage = self.tensor * self.context * self.data
        return stage // (self.expert if self.expert > 1 else self.tensor)

    def text(self) -> str:
        """`tensor 2 x data 4, sequence, recompute full`."""
        names = ("tensor", "context", "pipeline", "virtual", "data", "expert")
        sizes = [f"{name} {getattr(self, name)}" for name in names if getattr(self, name) > 1]
        words = [" x ".join(sizes) or "one rank"]
        words += ["sequence"] if self.sequence else []
        words += [f"recompute {self.recompute}"] if self.recompute != "none" else []
        words += ["distributed optimizer"] if self.distributed else []
        words += ["optimizer offload"] if self.optimizer_offload else []
        words += ["states as parameters"] if self.optimizer_states == "parameters" else []
        if self.cuts_teacher_otherwise:
            own = self.of_teacher
            words.append(f"teacher tensor {own.tensor} x pipeline {own.pipeline}")
        words += [f"{self.sampling} ranks that sample, lag {self.lag}"] if self.sampling else []
        words += ["teacher offload"] if self.teacher_offload else []
        words += [f"engine tensor {self.engine_tensor}"] if self.engine_tensor > 1 else []
        return ", ".join(words)


# fields that have, or are to have, a setting of the configuration; found by name where it is there
_SETTINGS = {
    "tensor": "parallel.tensor",
    "pipeline": "parallel.pipeline",
    "data": "parallel.data",
    "expert": "parallel.expert",
    "context": "parallel.context",
    "virtual": "parallel.virtual",
    "sequence": "parallel.sequence",
    "recompute": "parallel.recompute",
    "recompute_layers": "parallel.recompute_layers",
    "distributed": "optimizer.distributed",
    "overlap": "optimizer.overlap",
    "optimizer_offload": "optimizer.offload",
    "optimizer_states": "optimizer.states",
    "microbatch": "train.microbatch_tokens",
    "engine_tensor": "rollout.engine.tensor",
    "engine_share": "rollout.engine.gpu_memory_utilization",
    "engine_sleeps": "rollout.engine.sleep",
    "max_num_seqs": "rollout.engine.max_num_seqs",
    "teacher_tensor": "teacher.parallel.tensor",
    "teacher_pipeline": "teacher.parallel.pipeline",
    "teacher_context": "teacher.parallel.context",
    "teacher_expert": "teacher.parallel.expert",
    "teacher_sequence": "teacher.parallel.sequence",
    "sampling": "rollout.ranks",
    "lag": "rollout.lag",
    "teacher_offload": "teacher.offload",
}
_OFFLOADS = ("optimizer_offload", "teacher_offload")


def layout_of(config: Config) -> RunLayout:
    """The configuration's layout; what it has no setting for keeps its default."""
    found: dict[str, Any] = {}
    for name, key in _SETTINGS.items():
        value: Any = config.model_dump() if key.startswith("?") else _get(config, key)
        if value is not None:
            found[name] = value not in ("none", False) if name in _OFFLOADS else value
    if config.teachers:
        found["teacher_offload"] = all(e.offload == "cpu" for e in config.teachers.values())
    own = next((e.parallel for e in config.frozen.values() if e.parallel is not None), None)
    for name in ("tensor", "pipeline", "context", "expert", "sequence"):
        default = getattr(RunLayout, f"teacher_{name}")
        found[f"teacher_{name}"] = default if own is None else getattr(own, name)
    return RunLayout(**found)


def has_setting(field: str, config: Config) -> bool:
    """Whether this release can run what the field says."""
    *sections, name = _SETTINGS[field].split(".")
    section: Any = config
    for part in sections:
        section = getattr(section, part, None)
        if part == "rollout" and section is None:
            return False
    return section is not None and hasattr(section, name)


def as_settings(layout: RunLayout, config: Config) -> dict[str, Any]:
    """``key -> value`` of the layout, for the settings that there are."""
    values: dict[str, Any] = {}
    for field, key in _SETTINGS.items():
        if has_setting(field, config):
            value = getattr(layout, field)
            if field in ("sampling", "lag") and not value:
                continue
            if field == "optimizer_offload":
                value = "rollout" if value else "none"
            elif field == "teacher_offload":
                value = "cpu" if value else "none"
            values[key] = value
    return values


def _get(config: Config, key: str) -> Any:
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name, None)
    return value


def layout_problems(
    layout: RunLayout, student: ModelShape, teachers: Iterable[ModelShape]
) -> Iterator[str]:
    """Why a model cannot be cut so, each `setting: what; fix`."""
    cuts = [("model.student", student, layout.tensor, layout.pipeline * layout.virtual)]
    theirs = layout.of_teacher
    cuts += [("model.teacher", teacher, theirs.tensor, theirs.pipeline) for teacher in teachers]
    for key, shape, tensor, pipeline in cuts:
        own = key == "model.teacher" and layout.cuts_teacher_otherwise
        place, expert = "parallel.", layout.expert
        if own:
            place, expert = "teacher.parallel.", theirs.expert
        for name, size in shape.divided().items():
            ways, by = (tensor, "tensor")
            if name == "num_hidden_layers":
                ways, by = (pipeline, "pipeline")
            elif name == shape.family.ffn_key and shape.experts and expert > 1:
                continue
            if size % ways:
                divisors = [n for n in range(1, ways) if size % n == 0][-2:]
                fix = " or ".join(map(str, divisors))
                yield f"{place}{by}: is {ways} but {key} has {name} {size}; set it to {fix}"
        if shape.experts % expert:
            yield (
                f"{place}expert: is {expert} but {key} has {shape.experts} experts; "
                "set it to a divisor"
            )
    cut = theirs.tensor * theirs.pipeline * theirs.context
    if layout.ranks % cut:
        yield (
            f"teacher.parallel: makes {cut}, not a divisor of the {layout.ranks} ranks; set its "
            "tensor and pipeline so that it is"
        )
    stage = layout.tensor * layout.context * layout.data
    if stage % layout.expert:
        yield f"parallel.expert: is {layout.expert}, not a divisor of {stage}; set it to a divisor"
    if layout.virtual > 1 and layout.pipeline == 1:
        yield "virtual: needs a pipeline; set parallel.pipeline above 1"
    if layout.tensor % layout.engine_tensor and not layout.sampling:
        yield (
            f"rollout.engine.tensor: is {layout.engine_tensor}, not a divisor of parallel.tensor "
            f"{layout.tensor}; set it to 1 or {layout.tensor}"
        )
