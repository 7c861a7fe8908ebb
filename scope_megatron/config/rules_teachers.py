"""The rules on frozen models: which there are, and a layout of their own."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from scope_megatron.config.schema import Config
from scope_megatron.config.sections.model import EVERY_ROW, teacher_setting
from scope_megatron.config.sections.teacher import TeacherParallel
from scope_megatron.family import ModelShape


def teacher_problems(config: Config) -> Iterator[str]:
    """Settings of a frozen model that is not there, or that contradict each other."""
    teacher, defaults = config.teacher, type(config.teacher)()
    for name in ("offload", "dtype", "parallel"):
        value, default = getattr(teacher, name), getattr(defaults, name)
        if value != default and not config.has_frozen:
            given = "is given" if name == "parallel" else f"is {value}"
            back = "" if name == "parallel" else f", or set it to {default}"
            yield (
                f"teacher.{name}: {given} but algorithm.name {config.algorithm.name} has no "
                f"frozen model here; remove it{back}"
            )
    if config.model.teacher is not None and config.model.teachers is not None:
        yield (
            "model.teachers: is given beside model.teacher; remove one of them (model.teacher "
            "teaches every row)"
        )
    else:
        yield from _loaded_once(config)
        for key, parallel in own_layouts(config).items():
            yield from _layout(config, key, parallel)


def _loaded_once(config: Config) -> Iterator[str]:
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


def layout_setting(config: Config, tag: str) -> str:
    """The key of the layout of the frozen model with a tag."""
    given = (config.model.teachers or {}).get(tag)
    alone = tag == EVERY_ROW or given is None or given.parallel is None
    return "teacher.parallel" if alone else f"{teacher_setting(tag)}.parallel"


def _layout(config: Config, key: str, parallel: TeacherParallel) -> Iterator[str]:
    ranks = config.parallel.ranks
    if ranks % parallel.ranks:
        sizes = f"tensor {parallel.tensor} x pipeline {parallel.pipeline}"
        sizes += f" x context {parallel.context}" if parallel.context > 1 else ""
        yield (
            f"{key}: {sizes} is {parallel.ranks}, not a divisor of the {ranks} ranks that train; "
            f"make it {_divisors(ranks, parallel.ranks)}"
        )
    elif ranks // parallel.pipeline % parallel.expert:
        stage = ranks // parallel.pipeline
        yield (
            f"{key}.expert: is {parallel.expert}, not a divisor of the {stage} ranks of a stage; "
            f"set it to {_divisors(stage, parallel.expert)}"
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


def cut_problems(config: Config, shapes: dict[str, ModelShape]) -> Iterator[str]:
    """Teachers that do not divide over a layout of their own; ``shapes`` by setting."""
    for tag, entry in config.frozen.items():
        name = "model.student" if not config.needs_teacher else teacher_setting(tag)
        shape, parallel = shapes.get(name), entry.parallel
        if shape is None or parallel is None:
            continue
        key = layout_setting(config, tag)
        for what, size in shape.divided().items():
            by = "pipeline" if what == "num_hidden_layers" else "tensor"
            ranks = getattr(parallel, by)
            if what == shape.family.ffn_key and shape.experts and parallel.expert > 1:
                continue
            if size % ranks:
                fix = _divisors(size, ranks)
                yield f"{key}.{by}: is {ranks} but {name} has {what} {size}; set it to {fix}"
        if parallel.expert > 1 and (not shape.experts or shape.experts % parallel.expert):
            fix = _divisors(math.gcd(shape.experts, config.parallel.ranks) or 1, parallel.expert)
            yield (
                f"{key}.expert: is {parallel.expert} but {name} has {shape.experts or 'no'} "
                f"experts; set it to {fix or 1}"
            )


def _divisors(size: int, below: int) -> str:
    divisors = [number for number in range(1, below) if size % number == 0]
    return " or ".join(str(number) for number in divisors[-2:])
