"""The configuration's schema: one frozen, strict pydantic model per section of the YAML file.

Strict means that nothing is guessed: an unknown key, a number in quotes, a NaN is an error. The
descriptions are the reference manual: `tools/config_reference.py` prints them.
"""

from __future__ import annotations

import math
from functools import reduce
from typing import Any, Literal

import yaml
from pydantic import Field, model_validator

from scope_megatron.algorithm import ALGORITHM_SPECS, AlgorithmSpec
from scope_megatron.config.sections.algorithm import AlgorithmConfig
from scope_megatron.config.sections.data import DataConfig
from scope_megatron.config.sections.faults import FaultsConfig
from scope_megatron.config.sections.logging import LoggingConfig
from scope_megatron.config.sections.model import EVERY_ROW, AnyPath, ModelConfig, TeacherEntry
from scope_megatron.config.sections.objective import ObjectiveConfig
from scope_megatron.config.sections.parallel import ParallelConfig
from scope_megatron.config.sections.presets import with_preset
from scope_megatron.config.sections.profile import ProfileConfig
from scope_megatron.config.sections.rollout import EngineConfig, RolloutConfig, TopK
from scope_megatron.config.sections.section import Section
from scope_megatron.config.sections.teacher import TeacherConfig
from scope_megatron.config.sections.verifier import VerifierConfig

LAG_CLIP = 2.0  # objective.tis_clip at rollout.lag 1, and with rollout.carry_over
_ROUNDING = 1e-9  # of a product that is a whole number: 0.29 * 100 is 28.999999999999996


class PlatformConfig(Section):
    """What the run computes on."""

    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto",
        description="auto: CUDA when GPU, driver and the builds of torch and vLLM agree, else the "
        "CPU, and a line that says why. Where it is auto, the environment variable SCOPE_DEVICE "
        "may say cpu or cuda",
    )
    deterministic: bool = Field(
        False,
        description="for debugging on GPUs: kernels that give the same bits each time, where "
        "torch, cuBLAS, Transformer Engine and vLLM have them. Slower, and not proven on a GPU "
        "yet. A CPU does so anyway",
    )


class OptimizerConfig(Section):
    """AdamW and the learning rate."""

    lr: float = Field(5e-5, gt=0, description="peak learning rate")
    weight_decay: float = Field(0.01, ge=0, description="decoupled weight decay")
    beta1: float = Field(0.9, ge=0, lt=1, description="decay of the first moment")
    beta2: float = Field(0.95, ge=0, lt=1, description="decay of the second moment")
    eps: float = Field(1e-8, gt=0, description="added to the second moment's root")
    clip_grad: float = Field(1.0, ge=0, description="largest global gradient norm; 0: no clipping")
    warmup_steps: int = Field(0, ge=0, description="steps of linear warm-up from zero")
    schedule: Literal["constant", "cosine", "linear"] = Field(
        "constant", description="learning rate after the warm-up; cosine and linear end at zero"
    )
    states: Literal["float32", "parameters"] = Field(
        "float32",
        description="type of Adam's states. float32: with bfloat16 parameters also float32 copies "
        "of these, which are stepped; parameters: states, steps and gradients in the parameters' "
        "own type, without copies",
    )
    distributed: bool = Field(
        False, description="shard the optimizer's state over the data-parallel replicas"
    )
    overlap: bool = Field(
        False,
        description="gradients are summed over the replicas beside the backward pass "
        "that makes them, bucket by bucket",
    )
    offload: Literal["none", "rollout"] = Field(
        "none",
        description="CUDA: rollout: between updates the optimizer's states and float32 parameters "
        "are in host memory and the gradients' memory is free, for a copy there and back per step",
    )


class TrainConfig(Section):
    """The length and the size of the training."""

    steps: int = Field(ge=1, description="training steps")
    microbatch_tokens: int = Field(
        ge=1,
        description="tokens of one packed microbatch on one replica; at least the longest sequence",
    )
    updates_per_batch: int = Field(1, ge=1, description="optimizer steps per batch of rollouts")
    batch_sequences: int | None = Field(
        None, ge=1, description="sequences per step, all replicas together"
    )


class CheckpointConfig(Section):
    """Checkpoints and the exported student."""

    every: int = Field(
        0, ge=0, description="steps between checkpoints; 0: only at the end or when interrupted"
    )
    keep: int = Field(2, ge=1, description="newest checkpoints that are kept")
    keep_best: int = Field(
        1,
        ge=0,
        description="checkpoints with the highest Avg@k that are kept besides; only checkpoints "
        "of steps with an evaluation count",
    )
    asynchronous: bool = Field(
        True,
        description="write checkpoints in the background: a step pays only for a copy in host "
        "memory, which is as large as the weights and the optimizer's state of the rank",
    )
    at_end: bool = Field(True, description="a checkpoint after the last step")
    export_hf: bool = Field(
        True, description="write the final student as a Hugging Face directory as well"
    )


class EvaluationConfig(Section):
    """Avg@k and Pass@k on data.eval."""

    every: int = Field(0, ge=0, description="steps between evaluations; 0: none between")
    before: bool = Field(True, description="evaluate the untrained student")
    after: bool = Field(True, description="evaluate the final student")
    samples: int = Field(8, ge=1, description="responses per prompt (the k of Avg@k)")
    temperature: float = Field(0.6, gt=0, description="sampling temperature")
    top_p: float = Field(0.95, gt=0, le=1, description="nucleus sampling; 1.0: off")
    top_k: TopK = Field(20, description="sample among the k likeliest tokens; -1 or 0: all")
    max_response_tokens: int | None = Field(
        None, ge=1, description="length limit of a response; null: rollout.max_response_tokens"
    )
    limit: int | None = Field(
        None, ge=1, description="evaluate only the first prompts, this many; null: all"
    )


class Config(Section):
    """A whole run. Relative paths are relative to the current directory."""

    seed: int = Field(1234, ge=0, description="seed of data order and sampling")
    output_dir: AnyPath = Field(description="directory of the run: checkpoints, metrics, export")
    resume: str = Field(
        "never",
        min_length=1,
        description="never; auto: the newest valid checkpoint of output_dir, if any; or the path "
        "of a checkpoint",
    )
    algorithm: AlgorithmConfig = AlgorithmConfig()
    model: ModelConfig
    teacher: TeacherConfig = TeacherConfig()
    platform: PlatformConfig = PlatformConfig()
    parallel: ParallelConfig = ParallelConfig()
    data: DataConfig
    rollout: RolloutConfig | None = None
    verifier: VerifierConfig = VerifierConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    logging: LoggingConfig = LoggingConfig()
    faults: FaultsConfig = FaultsConfig()
    profile: ProfileConfig = ProfileConfig()

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, values: Any) -> Any:
        return with_preset(values)

    @model_validator(mode="before")
    @classmethod
    def _opd_samples_once(cls, values: Any) -> Any:
        """opd has no groups: its group_size is 1 unless one was given."""
        sections = values if isinstance(values, dict) else {}
        algorithm, rollout = sections.get("algorithm"), sections.get("rollout")
        if isinstance(algorithm, dict) and isinstance(rollout, dict):
            if algorithm.get("name") == "opd":
                return values | {"rollout": {"group_size": 1} | rollout}
        return values

    @model_validator(mode="before")
    @classmethod
    def _lag_is_corrected(cls, values: Any) -> Any:
        """Responses of older parameters: importance weights are on unless they are turned off."""
        sections = values if isinstance(values, dict) else {}
        objective, rollout = sections.get("objective", {}), sections.get("rollout")
        if not (isinstance(objective, dict) and isinstance(rollout, dict)):
            return values
        if rollout.get("lag") == 1 or rollout.get("carry_over"):
            return values | {"objective": {"tis_clip": LAG_CLIP} | objective}
        return values

    @property
    def spec(self) -> AlgorithmSpec:
        """The algorithm's record."""
        return ALGORITHM_SPECS[self.algorithm.name]

    def value_of(self, key: str) -> Any:
        """The value of a dotted key, `objective.tau`."""
        return reduce(getattr, key.split("."), self)

    def reads(self, key: str) -> bool:
        """Whether the algorithm, as the other settings have it, reads a setting of its record."""
        where = self.spec.reads.get(key)
        return where is not None and all(one.holds(self.value_of(one.key)) for one in where)

    @property
    def lag(self) -> int:
        """Updates between the parameters that sample a step's responses and those it trains."""
        return self.rollout.lag if self.rollout is not None and self.on_policy else 0

    @property
    def carried_groups(self) -> int:
        """Groups that a replica may leave for its next step (``rollout.carry_over``)."""
        if self.rollout is None or not self.on_policy:
            return 0
        mine = self.rollout.prompts_per_step // self.parallel.data
        return math.floor(self.rollout.carry_over * mine + _ROUNDING)

    @property
    def stale(self) -> bool:
        """Whether a step may train on responses of older parameters."""
        return bool(self.lag or self.carried_groups)

    @property
    def training_ranks(self) -> int:
        """Ranks that train: the first ones of the job."""
        return self.parallel.ranks

    @property
    def sampling_ranks(self) -> int:
        """Ranks that only sample, after those that train; 0 where engines are colocated."""
        return self.rollout.ranks or 0 if self.rollout and self.separate else 0

    @property
    def separate(self) -> bool:
        """Whether engines have ranks of their own."""
        return self.rollout is not None and self.rollout.placement == "separate"

    @property
    def world_size(self) -> int:
        """Ranks of the run."""
        return self.training_ranks + self.sampling_ranks

    @property
    def on_policy(self) -> bool:
        """Whether the student samples what it is trained on (all but kd)."""
        return self.spec.samples

    @property
    def prompts_per_step(self) -> int:
        """Rows of the training data that one step takes."""
        if self.on_policy and self.rollout is not None:
            return self.rollout.prompts_per_step
        assert self.train.batch_sequences is not None  # a rule of the loader
        return self.train.batch_sequences

    @property
    def needs_teacher(self) -> bool:
        """Whether the algorithm scores with the teacher."""
        return self.reads("teacher.source")

    @property
    def teacher_temperature(self) -> float:
        """What the teacher's logits are divided by: ``objective.teacher_temperature``, resolved."""
        given = self.objective.teacher_temperature
        return self.student_temperature if isinstance(given, str) else given

    @property
    def student_temperature(self) -> float:
        """What the student's logits are divided by wherever it is scored or trained."""
        return self.rollout.temperature if self.rollout is not None else 1.0

    @property
    def rewards_groups(self) -> bool:
        """Whether the algorithm compares the rewards of a group's responses."""
        return self.spec.rewards

    @property
    def has_frozen(self) -> bool:
        """Whether a frozen model stands beside the student: the teacher, or grpo's reference."""
        return self.reads("teacher.offload")

    @property
    def loads_teacher(self) -> bool:
        """Whether the teacher is a model beside the student, not the student itself."""
        return self.reads("model.teachers")

    @property
    def extrapolates(self) -> bool:
        """Whether the teacher's term reaches beyond the teacher, away from the initial student."""
        return self.needs_teacher and self.objective.extrapolation != 1.0

    @property
    def teachers(self) -> dict[str, TeacherEntry]:
        """The teachers that the algorithm scores with, by tag, with nothing left to `teacher`;
        ``model.teacher`` has the tag EVERY_ROW. Empty without need, or where none was given."""
        given, alone = self.model.teachers or {}, self.model.teacher
        if not self.loads_teacher:
            return {}
        if alone is not None and not given:
            given = {EVERY_ROW: TeacherEntry(path=alone)}
        return {tag: self._resolved(entry) for tag, entry in given.items()}

    @property
    def teacher_tags(self) -> tuple[str, ...]:
        """The tags of several teachers; none where one teaches every row."""
        return tuple(tag for tag in self.teachers if tag != EVERY_ROW)

    def _resolved(self, entry: TeacherEntry) -> TeacherEntry:
        dtype = self.teacher.dtype if entry.dtype is None else entry.dtype
        offload = self.teacher.offload if entry.offload is None else entry.offload
        dtype = self.model.dtype if dtype == "auto" else dtype
        parallel = self.teacher.parallel if entry.parallel is None else entry.parallel
        if parallel is not None and all(
            size == getattr(self.parallel, name) for name, size in parallel
        ):
            parallel = None  # the student's
        update = {"dtype": dtype, "offload": offload, "parallel": parallel}
        resolved: TeacherEntry = entry.model_copy(update=update)
        return resolved

    @property
    def frozen(self) -> dict[str, TeacherEntry]:
        """``teachers``, or grpo's reference as the only one."""
        if self.needs_teacher or not self.has_frozen:
            return self.teachers
        return {EVERY_ROW: self._resolved(TeacherEntry(path=self.model.student))}

    @property
    def evaluates(self) -> bool:
        """Whether the training evaluates at any time."""
        return self.evaluation.every > 0 or self.evaluation.before or self.evaluation.after

    @property
    def needs_engine(self) -> bool:
        """Whether responses are sampled at any time of the training."""
        return self.on_policy or self.evaluates

    @property
    def engine(self) -> EngineConfig:
        """rollout.engine, or the defaults where kd has no rollout section."""
        return self.rollout.engine if self.rollout else EngineConfig()

    @property
    def evaluation_response_tokens(self) -> int | None:
        """Length limit of an evaluation's responses; None: not set anywhere (kd only)."""
        if self.evaluation.max_response_tokens is not None:
            return self.evaluation.max_response_tokens
        return self.rollout.max_response_tokens if self.rollout else None

    @property
    def max_sequence_tokens(self) -> int:
        """Longest training sequence, prompt and response; kd without rollout: a microbatch."""
        if self.rollout is None:
            return self.train.microbatch_tokens
        return self.data.max_prompt_tokens + self.rollout.max_response_tokens

    @property
    def max_model_len(self) -> int:
        """Longest sequence the engine must hold, in tokens."""
        return self.engine.max_model_len or self.needed_model_len

    @property
    def needed_model_len(self) -> int:
        """Longest prompt + response that training or evaluation may sample."""
        responses = [self.rollout.max_response_tokens if self.rollout else 0]
        if self.data.eval is not None:
            responses.append(self.evaluation_response_tokens or 0)
        return self.data.max_prompt_tokens + max(responses)

    def to_yaml(self) -> str:
        """The resolved configuration; `load_config` reads it back to an equal one."""
        values = self.model_dump(mode="json")
        text: str = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
        return text
