"""The rules that look into the models' directories. Each yields `key: what; fix`."""

from __future__ import annotations

import filecmp
import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from scope_megatron.config.modeldir import (
    CPU_HEAD_DIMS,
    ModelDirError,
    check_weights,
    first_difference,
    read_shape,
    require_directory,
    token_map,
    tokenizer_file,
)
from scope_megatron.config.schema import Config
from scope_megatron.config.sections.model import EVERY_ROW, teacher_setting
from scope_megatron.family import ModelShape

Command = Literal["train", "evaluate", "data"]
Problems = Iterator[str]


def evaluates(config: Config, command: Command) -> bool:
    """Whether the command evaluates at any time."""
    return command == "evaluate" or (config.evaluates and command == "train")


def model_problems(config: Config, command: Command) -> Problems:
    """Every model of the run by itself, then what the pair must share."""
    if command == "data":
        return
    paths = {"model.student": config.model.student}
    if command == "train":
        paths |= {teacher_setting(tag): entry.path for tag, entry in config.teachers.items()}
    shapes: dict[str, ModelShape] = {}
    for key, path in paths.items():
        try:
            require_directory(path)
            shapes[key] = read_shape(path)
            check_weights(path, shapes[key].tied)
        except ModelDirError as error:
            yield f"{key}: {error}"
    cut_alike = _as_the_student(config, shapes)
    yield from _cut(config, cut_alike)
    if command == "train":
        yield from _cut_otherwise(config, shapes)
    yield from _virtual(config, shapes)
    yield from _recomputed(config, shapes)
    yield from _experts(config, cut_alike, command)
    for key, shape in shapes.items():
        yield from _fits(config, key, shape)
        if shape.logits_cap is not None and config.objective.head == "fused":
            yield (
                f"objective.head: is fused but {key} caps its logits (final_logit_softcapping), "
                "which the fused head does not; set it to auto or logits"
            )
    if "model.student" in shapes:
        if config.needs_engine or command == "evaluate":
            yield from _served(config, shapes["model.student"])
            yield from _engine_cut(config, shapes["model.student"])
    if len(shapes) == len(paths):
        yield from _vocabulary(config, shapes, command)


def _as_the_student(config: Config, shapes: dict[str, ModelShape]) -> dict[str, ModelShape]:
    """Without the teachers that have a layout of their own."""
    own = {teacher_setting(tag) for tag, entry in config.teachers.items() if entry.parallel}
    return {key: shape for key, shape in shapes.items() if key not in own}


def _cut(config: Config, shapes: dict[str, ModelShape]) -> Problems:
    """Every model divides over the tensor ranks and over the pipeline's stages."""
    for by, ranks in (("tensor", config.parallel.tensor), ("pipeline", config.parallel.pipeline)):
        sizes = {
            f"{key} has {name} {size}": size
            for key, shape in shapes.items()
            for name, size in shape.divided().items()
            if (name == "num_hidden_layers") == (by == "pipeline")
            and not (name == shape.family.ffn_key and _whole_experts(config, shape))
        }
        for what, size in sizes.items():
            if size % ranks:
                fix = divisors(math.gcd(*sizes.values()), ranks)
                yield f"parallel.{by}: is {ranks} but {what}; set it to {fix}"


def _cut_otherwise(config: Config, shapes: dict[str, ModelShape]) -> Problems:
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
                fix = divisors(size, ranks)
                yield f"{key}.{by}: is {ranks} but {name} has {what} {size}; set it to {fix}"
        if parallel.expert > 1 and (not shape.experts or shape.experts % parallel.expert):
            fix = divisors(math.gcd(shape.experts, config.parallel.ranks) or 1, parallel.expert)
            yield (
                f"{key}.expert: is {parallel.expert} but {name} has {shape.experts or 'no'} "
                f"experts; set it to {fix or 1}"
            )


def layout_setting(config: Config, tag: str) -> str:
    """The key of the layout of the frozen model with a tag."""
    given = (config.model.teachers or {}).get(tag)
    alone = tag == EVERY_ROW or given is None or given.parallel is None
    return "teacher.parallel" if alone else f"{teacher_setting(tag)}.parallel"


def _virtual(config: Config, shapes: dict[str, ModelShape]) -> Problems:
    student, parallel = shapes.get("model.student"), config.parallel
    if student is None or student.layers % parallel.pipeline or parallel.virtual_pipeline == 1:
        return
    stage = student.layers // parallel.pipeline
    if stage % parallel.virtual_pipeline:
        yield (
            f"parallel.virtual_pipeline: is {parallel.virtual_pipeline} but a pipeline stage of "
            f"model.student has {stage} layers; set it to "
            f"{divisors(stage, min(parallel.virtual_pipeline, stage + 1))}"
        )


def _engine_cut(config: Config, shape: ModelShape) -> Problems:
    """An engine on ranks of its own is cut as it likes, but into whole heads."""
    tensor, sizes = config.engine.tensor, shape.divided()
    for name, size in sizes.items():
        if config.separate and name != "num_hidden_layers" and size % tensor:
            if name == "num_key_value_heads" and tensor % size == 0:
                continue  # vLLM gives neighbours the same one
            yield (
                f"rollout.engine.tensor: is {tensor} but model.student has {name} {size}; "
                f"set it to {divisors(size, tensor)}"
            )


def _recomputed(config: Config, shapes: dict[str, ModelShape]) -> Problems:
    layers, student = config.parallel.recompute_layers, shapes.get("model.student")
    if layers is None or student is None:
        return
    parallel = config.parallel
    chunk = max(1, student.layers // parallel.pipeline // parallel.virtual_pipeline)
    if layers > chunk:
        what = "chunk" if parallel.virtual_pipeline > 1 else "pipeline stage"
        yield (
            f"parallel.recompute_layers: is {layers} but a {what} of model.student has "
            f"{chunk} layers; set it to {chunk} or less, or to null"
        )


def _whole_experts(config: Config, shape: ModelShape) -> bool:
    return shape.experts > 0 and config.parallel.expert > 1


def _experts(config: Config, shapes: dict[str, ModelShape], command: str) -> Problems:
    """Experts divide over the ranks that share them; megatron-core trains them under tensor
    parallelism with sequence parallelism only."""
    student, layout = shapes.get("model.student"), config.parallel
    mixtures = {key: shape.experts for key, shape in shapes.items() if shape.experts}
    if layout.expert > 1 and shapes and not mixtures:
        yield (
            f"parallel.expert: is {layout.expert} but no model of the run has experts; set it to 1"
        )
    for key, experts in mixtures.items():
        if experts % layout.expert:
            common = math.gcd(*mixtures.values(), layout.tensor * layout.data)
            yield (
                f"parallel.expert: is {layout.expert} but {key} has {experts} experts; "
                f"set it to {divisors(common, layout.expert)}"
            )
    if student and not student.experts and config.objective.moe_aux_loss_coeff:
        yield (
            f"objective.moe_aux_loss_coeff: is {config.objective.moe_aux_loss_coeff:g} but "
            "model.student has no experts; set it to 0"
        )
    if student and student.experts and layout.tensor > 1 and not layout.sequence:
        if command == "train":
            yield (
                f"parallel.sequence: is false but model.student has {student.experts} experts and "
                f"parallel.tensor is {layout.tensor}; set it to true"
            )


def divisors(size: int, below: int) -> str:
    """The two largest divisors of size below a number: `2 or 4`."""
    divisors = [number for number in range(1, below) if size % number == 0]
    return " or ".join(str(number) for number in divisors[-2:])


def _fits(config: Config, key: str, shape: ModelShape) -> Problems:
    """The model's sizes fit each other, and its context holds a training sequence."""
    if shape.heads % shape.query_groups:
        yield (
            f"{key}: has {shape.heads} num_attention_heads, not a multiple of its "
            f"{shape.query_groups} num_key_value_heads; correct config.json"
        )
    if config.rollout and config.max_sequence_tokens > shape.max_positions:
        yield (
            f"rollout.max_response_tokens: with data.max_prompt_tokens makes "
            f"{config.max_sequence_tokens}, above {key}'s max_position_embeddings; "
            f"set their sum to {shape.max_positions} or less"
        )


def _served(config: Config, shape: ModelShape) -> Problems:
    """What the engine asks of the student."""
    if config.platform.device == "cpu" and shape.head_dim not in CPU_HEAD_DIMS:
        allowed = ", ".join(str(size) for size in CPU_HEAD_DIMS)
        yield (
            f"model.student: has head_dim {shape.head_dim}, which the CPU engine cannot serve; "
            f"use a model with head_dim {allowed}"
        )
    sequence = config.max_sequence_tokens if config.rollout else 0
    if config.max_model_len > max(shape.max_positions, sequence):  # that one is reported already
        given = config.engine.max_model_len is not None
        key = "rollout.engine.max_model_len" if given else "evaluation.max_response_tokens"
        yield (
            f"{key}: makes sequences of {config.max_model_len} tokens, above model.student's "
            f"max_position_embeddings; the limit with the prompt is {shape.max_positions}"
        )


def _vocabulary(config: Config, shapes: dict[str, ModelShape], command: Command) -> Problems:
    """One token map for both models, within both embeddings; every id that the student may sample,
    its padding's as well, within the teacher's; top-k within the vocabulary."""
    chosen = config.model.tokenizer or config.model.student
    key = "model.tokenizer" if config.model.tokenizer else "model.student"
    size = min(shape.vocab for shape in shapes.values())
    try:
        file = tokenizer_file(chosen)
        tokens = token_map(file) if file.suffix == ".json" else None
        for tag, entry in config.teachers.items():
            key = teacher_setting(tag)
            if key in shapes:
                _require_same_tokens(file, tokens, tokenizer_file(entry.path))
    except ModelDirError as error:
        yield f"{key}: {error}"
        return
    end = 0 if tokens is None else max(tokens, default=0) + 1
    sampled = shapes["model.student"].vocab if command == "train" else 0
    for model, shape in shapes.items():
        if end > shape.vocab:
            yield (
                f"{model}: has vocab_size {shape.vocab} but the tokenizer needs {end}; "
                "use the tokenizer that the model was trained with"
            )
        elif sampled > shape.vocab:
            yield (
                f"{model}: has vocab_size {shape.vocab} but model.student has {sampled} and may "
                f"sample any of them; use a teacher with a vocab_size of {sampled} or more"
            )
    size = min(size, end or size)
    yield from _top_k(config, size, command)


def _top_k(config: Config, vocabulary: int, command: Command) -> Problems:
    sizes = {}
    if evaluates(config, command):
        sizes["evaluation.top_k"] = config.evaluation.top_k
    if config.rollout:
        sizes["rollout.top_k"] = config.rollout.top_k
    if config.objective.kl == "topk":
        sizes["objective.topk"] = config.objective.topk
    for key, size in sizes.items():
        if size > vocabulary:
            yield (
                f"{key}: is {size}, above the vocabulary's {vocabulary} tokens; "
                f"set it to {vocabulary} or less"
            )


def _require_same_tokens(student: Path, tokens: dict[int, str] | None, teacher: Path) -> None:
    """Raise ModelDirError unless both files give every id the same token.

    ``tokens`` is the student's map, None for a sentencepiece file.
    """
    same_family = "use a teacher with the student's tokenizer"
    if student.suffix != teacher.suffix:
        raise ModelDirError(
            f"{teacher} cannot be compared with {student}; give both models a tokenizer.json"
        )
    if tokens is None:
        digests = [hashlib.sha256(path.read_bytes()).digest() for path in (student, teacher)]
        if digests[0] != digests[1]:
            raise ModelDirError(f"{teacher} differs from {student}; {same_family}")
        return
    if filecmp.cmp(student, teacher, shallow=False):
        return
    theirs = token_map(teacher)
    index = first_difference(tokens, theirs)
    if index is not None:
        raise ModelDirError(
            f"{teacher} has {theirs.get(index)!r} at id {index} where the student's has "
            f"{tokens.get(index)!r}; {same_family}"
        )
