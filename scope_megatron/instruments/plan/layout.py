"""How student, teacher and engine are cut over the ranks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from scope_megatron.config import Config, TeacherEntry
from scope_megatron.family import ModelShape

RecomputeMode = Literal["none", "selective", "full"]
OptimizerStates = Literal["float32", "parameters"]


@dataclass(frozen=True)
class TeacherCut:
    """Where one of several frozen models is; as the student, where tensor and pipeline are 0."""

    tensor: int = 0
    pipeline: int = 0
    context: int = 1
    expert: int = 1
    sequence: bool = False
    offload: bool = False


@dataclass(frozen=True)
class RunLayout:
    """Sizes and placements of a run, this project's settings by their meaning."""

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
    teachers: tuple[TeacherCut, ...] = ()  # of each frozen model, where they are not all alike

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

    def for_teacher(self, number: int) -> RunLayout:
        """The layout with what it says of the teacher true of this one of several."""
        if not self.teachers:
            return self
        own = {f"teacher_{name}": value for name, value in vars(self.teachers[number]).items()}
        return replace(self, teachers=(), **own)

    def stages_of(self, cut: RunLayout, stage: int) -> range:
        """Another layout's stages on ranks of this one's stage."""
        each, theirs = self.ranks // self.pipeline, self.ranks // cut.pipeline
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
            text = f"teacher tensor {own.tensor} x pipeline {own.pipeline}"
            text += f" x context {own.context}" if own.context > 1 else ""
            words.append(text + (f" x expert {own.expert}" if own.expert > 1 else ""))
        words += [f"{self.sampling} ranks that sample, lag {self.lag}"] if self.sampling else []
        words += ["teacher offload"] if self.teacher_offload else []
        words += ["teachers in several layouts"] if self.teachers else []
        words += [f"engine tensor {self.engine_tensor}"] if self.engine_tensor > 1 else []
        return ", ".join(words)


# fields and their settings; those of the teacher are joined below
_SETTINGS = {
    "tensor": "parallel.tensor",
    "pipeline": "parallel.pipeline",
    "data": "parallel.data",
    "expert": "parallel.expert",
    "context": "parallel.context",
    "virtual": "parallel.virtual_pipeline",
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
    "sampling": "rollout.ranks",
    "lag": "rollout.lag",
}
_TEACHERS = ("tensor", "pipeline", "context", "expert", "sequence")


def layout_of(config: Config) -> RunLayout:
    """The configuration's layout; what it has no setting for keeps its default."""
    found: dict[str, Any] = {}
    for name, key in _SETTINGS.items():
        value = _get(config, key)
        if value is not None:
            found[name] = value != "none" if name == "optimizer_offload" else value
    cuts = tuple(_teacher_cut(entry) for _, entry in frozen_entries(config))
    for name, value in vars(cuts[0] if cuts else TeacherCut()).items():
        found[f"teacher_{name}"] = value
    if len(set(cuts)) > 1:
        found["teachers"] = cuts
    return RunLayout(**found)


def frozen_entries(config: Config) -> list[tuple[str, TeacherEntry]]:
    """(tag, entry) of every frozen model that a run loads, each checkpoint once: the teachers or
    grpo's reference, and the initial student that an extrapolated teacher is measured from."""
    found = dict[Path, tuple[str, TeacherEntry]]()
    for tag, entry in config.frozen.items():
        found.setdefault(entry.path, (tag, entry))
    entries = list(found.values())
    if config.extrapolates:
        student = TeacherEntry(
            path=config.model.student, dtype=config.model.dtype, offload="none", parallel=None
        )
        entries.append(("the initial student", student))
    return entries


def _teacher_cut(entry: TeacherEntry) -> TeacherCut:
    own, offload = entry.parallel, entry.offload == "cpu"
    return TeacherCut(**(own.model_dump() if own is not None else {}), offload=offload)


def as_settings(layout: RunLayout, config: Config) -> dict[str, Any]:
    """``key -> value`` of the layout."""
    values: dict[str, Any] = {}
    for field, key in _SETTINGS.items():
        if key.startswith("rollout.") and config.rollout is None:
            continue
        value = getattr(layout, field)
        if field == "optimizer_offload":
            value = "rollout" if value else "none"
        if field in ("sampling", "lag") and not layout.sampling:
            value = None if field == "sampling" else 0
        values[key] = value
    if config.rollout is not None:
        values["rollout.placement"] = "separate" if layout.sampling else "colocated"
    if not layout.teachers:  # each has said its own
        values["teacher.offload"] = "cpu" if layout.teacher_offload else "none"
        own = {name: getattr(layout, f"teacher_{name}") for name in _TEACHERS}
        own = {name: value or 1 for name, value in own.items()} | {"sequence": own["sequence"]}
        values["teacher.parallel"] = own if layout.cuts_teacher_otherwise else None
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
    yield from _uncut(layout, student, "model.student", "parallel.")
    for number, teacher in enumerate(teachers):
        told = layout.for_teacher(number)
        cut, own = told.of_teacher, told.cuts_teacher_otherwise
        yield from _uncut(
            cut, teacher, "model.teacher", "teacher.parallel." if own else "parallel."
        )
        each = cut.tensor * cut.pipeline * cut.context
        if layout.ranks % each:
            yield (
                f"teacher.parallel: makes {each}, not a divisor of the {layout.ranks} ranks; set "
                "its tensor and pipeline so that it is"
            )
        elif own and teacher.experts and layout.ranks // cut.pipeline % cut.expert:
            yield (
                f"teacher.parallel.expert: is {cut.expert}, not a divisor of the "
                f"{layout.ranks // cut.pipeline} ranks of a stage; set it to a divisor"
            )
    stage = layout.tensor * layout.context * layout.data
    if stage % layout.expert:
        yield f"parallel.expert: is {layout.expert}, not a divisor of {stage}; set it to a divisor"
    layers = student.layers // layout.pipeline
    if layout.virtual > 1 and layout.pipeline == 1:
        yield (
            f"parallel.virtual_pipeline: is {layout.virtual} but parallel.pipeline is 1; set "
            "parallel.pipeline above 1"
        )
    elif layers % layout.virtual:
        yield (
            f"parallel.virtual_pipeline: is {layout.virtual}, not a divisor of the {layers} layers "
            "of a stage; set it to a divisor"
        )
    if layout.tensor % layout.engine_tensor and not layout.sampling:
        yield (
            f"rollout.engine.tensor: is {layout.engine_tensor}, not a divisor of parallel.tensor "
            f"{layout.tensor}; set it to 1 or {layout.tensor}"
        )


def _uncut(cut: RunLayout, shape: ModelShape, key: str, place: str) -> Iterator[str]:
    """Sizes of a model that its cut does not divide."""
    for name, size in shape.divided().items():
        ways, by = (cut.tensor, "tensor")
        if name == "num_hidden_layers":
            ways, by = (cut.pipeline, "pipeline")
        elif name == shape.family.ffn_key and shape.experts and cut.expert > 1:
            continue
        if size % ways:
            divisors = [n for n in range(1, ways) if size % n == 0][-2:]
            fix = " or ".join(map(str, divisors))
            yield f"{place}{by}: is {ways} but {key} has {name} {size}; set it to {fix}"
    if shape.experts % cut.expert:
        yield (
            f"{place}expert: is {cut.expert} but {key} has {shape.experts} experts; "
            "set it to a divisor"
        )
