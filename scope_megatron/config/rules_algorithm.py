"""The rules on the algorithm, its models and its loss. Each yields `key: what; fix`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scope_megatron.algorithm import Condition, readers_of
from scope_megatron.config.keys import algorithm_settings, choices, field_of, walk, yaml_text
from scope_megatron.config.rules_models import Command, Problems, divisors, layout_setting
from scope_megatron.config.schema import LAG_CLIP, AlgorithmConfig, Config
from scope_megatron.config.sections.presets import REFERENCE_CODE
from scope_megatron.config.sections.read_with import READ_WITH
from scope_megatron.config.sections.teacher import TeacherParallel


def _unread(config: Config, command: Command) -> Problems:
    """Settings that the algorithm does not read, and those of its own that others turn off.

    What has its default is let pass, given or not: a resolved configuration has every key.
    """
    if command != "train":
        return
    name, reads, filled = config.algorithm.name, config.spec.reads, _filled_in(config)
    for key, field in algorithm_settings():
        value = config.value_of(key)
        if value in (field.default, filled.get(key, field.default)):
            continue
        if key in reads:
            yield from _turned_off(config, key, *reads[key])
            continue
        *more, last = readers_of(key)
        others = f" to {', '.join(more)} or {last}" if more else f"={last}"
        yield (
            f"{key}: {_is(config, key)} but algorithm.name {name} does not read it; "
            f"remove it, or set algorithm.name{others}"
        )


def _idle(config: Config, command: Command) -> Problems:
    """Settings of other sections that another one turns off."""
    if command != "train":
        return
    for key, field in walk():
        if key in READ_WITH and not (config.rollout is None and key.startswith("rollout.")):
            if config.value_of(key) != field.default:
                yield from _turned_off(config, key, READ_WITH[key])


def _turned_off(config: Config, key: str, *where: Condition) -> Problems:
    missing = next((one for one in where if not one.holds(config.value_of(one.key))), None)
    if missing is not None:
        its = yaml_text(config.value_of(missing.key))
        yield f"{key}: {_is(config, key)} but {missing.key} is {its}; set {missing}, or remove it"


def _is(config: Config, key: str) -> str:
    """What a message says of a value: all, where it is a number or a word of a list."""
    value, field = config.value_of(key), field_of(key)
    short = isinstance(value, bool | int | float) or (field is not None and choices(field))
    return f"is {yaml_text(value)}" if short else "is given"


def _filled_in(config: Config) -> dict[str, Any]:
    """The values that another setting stands for."""
    filled: dict[str, Any] = {}
    if config.objective.preset == "reference_code":
        for section, values in REFERENCE_CODE.items():
            filled |= {f"{section}.{name}": value for name, value in values.items()}
    if config.rollout is not None and (config.rollout.lag or config.rollout.carry_over):
        filled["objective.tis_clip"] = LAG_CLIP
    return filled


def _algorithm(config: Config, command: Command) -> Problems:
    name, rollout = config.algorithm.name, config.rollout
    if command == "train" and config.loads_teacher and not config.teachers:
        yield (
            f"model.teacher: is missing but algorithm.name {name} needs it; "
            "give the teacher's directory"
        )
    if name == "kd":
        if config.train.batch_sequences is None:
            yield (
                "train.batch_sequences: is missing but algorithm.name kd needs it; "
                "give the sequences per step"
            )
        return
    if rollout is None:
        yield (
            f"rollout: the section is missing but algorithm.name {name} needs it; "
            "add it with rollout.prompts_per_step, rollout.max_response_tokens"
        )
    elif config.rewards_groups and rollout.group_size < 2:
        yield (
            f"rollout.group_size: is {rollout.group_size} but {name} compares the responses of a "
            "group; set it to 2 or more"
        )


def _groups(config: Config, command: Command) -> Problems:
    """Switches that compare the responses of a group."""
    algorithm, rollout, defaults = config.algorithm, config.rollout, AlgorithmConfig()
    if not config.on_policy or rollout is None:
        return
    for name in ("group_filter", "pass_rate_alpha", "pass_rate_beta"):
        value, default = getattr(algorithm, name), getattr(defaults, name)
        if value != default and rollout.group_size < 2:
            yield (
                f"algorithm.{name}: is {value} but there is one response per prompt; "
                "set rollout.group_size to 2 or more, or remove it"
            )
    buffer = algorithm.overlong_buffer
    if config.rewards_groups and buffer > rollout.max_response_tokens:
        yield (
            f"algorithm.overlong_buffer: is {buffer}, above rollout.max_response_tokens "
            f"{rollout.max_response_tokens}; set it to {rollout.max_response_tokens} or less"
        )


def _teacher(config: Config, command: Command) -> Problems:
    """Settings of frozen models that contradict each other."""
    if command != "train":
        return
    if config.model.teacher is not None and config.model.teachers is not None:
        yield (
            "model.teachers: is given beside model.teacher; remove one of them (model.teacher "
            "teaches every row)"
        )
    else:
        yield from _loaded_once(config)
        for key, parallel in own_layouts(config).items():
            yield from _layout(config, key, parallel)


def _loaded_once(config: Config) -> Problems:
    """One checkpoint under several tags is one model."""
    first: dict[Path, str] = {}
    for tag, entry in config.teachers.items():
        other = first.setdefault(entry.path.resolve(), tag)
        for name in ("offload", "dtype", "parallel"):
            value, its = getattr(entry, name), getattr(config.teachers[other], name)
            if value != its:
                is_, has = ("is given", "another") if name == "parallel" else (f"is {value}", its)
                yield (
                    f"model.teachers.{tag}.{name}: {is_} but model.teachers.{other}, which "
                    f"is the same checkpoint and loaded once, has {has}; give both the same"
                )


def own_layouts(config: Config) -> dict[str, TeacherParallel]:
    """The layouts that are not the student's, by the key that gives them."""
    found = {}
    for tag, entry in config.frozen.items():
        if entry.parallel is not None:
            found[layout_setting(config, tag)] = entry.parallel
    return found


def _layout(config: Config, key: str, parallel: TeacherParallel) -> Problems:
    ranks = config.parallel.ranks
    if ranks % parallel.ranks:
        sizes = f"tensor {parallel.tensor} x pipeline {parallel.pipeline}"
        sizes += f" x context {parallel.context}" if parallel.context > 1 else ""
        yield (
            f"{key}: {sizes} is {parallel.ranks}, not a divisor of the {ranks} ranks that train; "
            f"make it {divisors(ranks, parallel.ranks)}"
        )
    elif ranks // parallel.pipeline % parallel.expert:
        stage = ranks // parallel.pipeline
        yield (
            f"{key}.expert: is {parallel.expert}, not a divisor of the {stage} ranks of a stage; "
            f"set it to {divisors(stage, parallel.expert)}"
        )
    if parallel.sequence and parallel.tensor == 1:
        yield (
            f"{key}.sequence: is true but {key}.tensor is 1; "
            f"set {key}.tensor > 1 or {key}.sequence=false"
        )
    pieces = 2 * parallel.context * (parallel.tensor if parallel.sequence else 1)
    padded = config.max_sequence_tokens + pieces - 1
    if parallel.context > 1 and config.train.microbatch_tokens < padded:
        yield (
            f"train.microbatch_tokens: is {config.train.microbatch_tokens}, but {key}.context "
            f"{parallel.context} pads the longest sequence; set it to {padded} or more"
        )


def _privileged(config: Config, command: Command) -> Problems:
    """A teacher that reads more than the student, or is the student."""
    teacher = config.teacher
    if not config.needs_teacher:
        return
    if teacher.privileged is not None and "{answer}" not in teacher.privileged:
        yield (
            "teacher.privileged: has no {answer}, so the teacher would know no more than its "
            "words; write {answer} where the row's reference answer belongs"
        )
    if teacher.source == "student":
        if teacher.privileged is None:
            yield (
                "teacher.source: is student, but without a privileged prompt it would teach what "
                "it knows; set teacher.privileged"
            )
        if config.objective.kl != "sampled":
            yield (
                f"objective.kl: is {config.objective.kl} but teacher.source student has "
                "log-probabilities of sampled tokens alone; set it to sampled, or "
                "teacher.source=model and model.teacher to the student's directory"
            )


def _objective(config: Config, command: Command) -> Problems:
    objective = config.objective
    if objective.preset == "reference_code" and objective.student_weight != "reversed":
        yield (
            f"objective.student_weight: is {objective.student_weight} but objective.preset "
            "reference_code makes it reversed; remove one of the two"
        )
    modes = [objective.student_weight, *[objective.teacher_weight] * config.needs_teacher]
    if config.reads("objective.tau") and objective.tau != 1.0 and {*modes} == {"uniform"}:
        yield (
            f"objective.tau: is {objective.tau} but all weights are uniform, whatever it is; "
            "remove it, or set objective.student_weight=perplexity"
        )
    teachers = {entry.path.resolve() for entry in config.teachers.values()}
    if objective.weight_group == "batch" and len(teachers) > 1:
        yield (
            f"objective.weight_group: is batch but {len(teachers)} teachers are given, whose "
            "perplexities do not compare; set it to prompt"
        )
    if objective.kernel == "triton" and config.platform.device == "cpu":
        yield (
            "objective.kernel: is triton but this machine has no CUDA device; "
            "set it to auto or torch"
        )


def setting_warnings(config: Config) -> Problems:
    """What is allowed and may not be meant, in the form of the rules."""
    student, teacher = config.student_temperature, config.teacher_temperature
    if config.needs_teacher and teacher != student:
        yield (
            f"objective.teacher_temperature: is {teacher:g} but rollout.temperature is "
            f"{student:g}: a student that is its teacher would not be at rest; set it to "
            "as_rollout, or leave it as the published code has it (docs/reference_code.md)"
        )


def _optimizer(config: Config, command: Command) -> Problems:
    if config.optimizer.states == "parameters" and config.optimizer.distributed:
        yield (
            "optimizer.states: is parameters but optimizer.distributed keeps float32 copies; "
            "set one of them to its default"
        )


ALGORITHM_RULES = (
    _unread,
    _idle,
    _algorithm,
    _groups,
    _teacher,
    _objective,
    _privileged,
    _optimizer,
)
