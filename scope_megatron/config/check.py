"""The rules that join several settings, or settings and files. Each yields `key: what; fix`."""

from __future__ import annotations

import difflib
import filecmp
import hashlib
import math
import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from scope_megatron.config.modeldir import (
    CPU_HEAD_DIMS,
    ModelDirError,
    ModelShape,
    check_weights,
    first_difference,
    read_shape,
    require_directory,
    token_map,
    tokenizer_file,
)
from scope_megatron.config.models import Config
from scope_megatron.config.storage import output_problems, room_problems

Command = Literal["train", "evaluate"]
Problems = Iterator[str]
DATA_SUFFIXES = (".jsonl", ".parquet")


def cuda_visible() -> bool:
    """Whether this machine has an NVIDIA GPU for this process, found without importing torch."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return False
    return Path("/dev/nvidia0").exists() or Path("/proc/driver/nvidia").exists()


def setting_problems(config: Config, command: Command) -> list[str]:
    """Rules between settings alone."""
    rules = (_algorithm, _objective, _evaluation, _parallel, _lengths)
    return [problem for rule in rules for problem in rule(config, command)]


def file_problems(config: Config, command: Command) -> list[str]:
    """Rules between settings and what is on disk."""
    rules = (_output, _data, _models)
    return [problem for rule in rules for problem in rule(config, command)]


def _evaluates(config: Config, command: Command) -> bool:
    return config.evaluates or command == "evaluate"


def _algorithm(config: Config, command: Command) -> Problems:
    name, rollout = config.algorithm.name, config.rollout
    if command == "train" and config.needs_teacher and config.model.teacher is None:
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
    if config.train.batch_sequences is not None:
        yield (
            f"train.batch_sequences: is for algorithm.name kd, not {name}; "
            "remove it and set rollout.prompts_per_step"
        )
    if rollout is None:
        yield (
            f"rollout: the section is missing but algorithm.name {name} needs it; "
            "add it with rollout.prompts_per_step, rollout.max_response_tokens"
        )
    elif name == "grpo" and rollout.group_size < 2:
        yield (
            f"rollout.group_size: is {rollout.group_size} but grpo compares the responses of a "
            "group; set it to 2 or more"
        )


def _objective(config: Config, command: Command) -> Problems:
    objective = config.objective
    if objective.preset == "reference_code" and objective.student_weight != "reversed":
        yield (
            f"objective.student_weight: is {objective.student_weight} but objective.preset "
            "reference_code makes it reversed; remove one of the two"
        )
    if objective.kernel == "triton" and not cuda_visible():
        yield (
            "objective.kernel: is triton but this machine has no CUDA device; "
            "set it to auto or torch"
        )
    elif objective.kernel == "triton" and find_spec("triton") is None:
        yield (
            "objective.kernel: is triton but Triton is not installed; "
            "install triton, or set it to auto or torch"
        )


def _evaluation(config: Config, command: Command) -> Problems:
    evaluation = config.evaluation
    on = [
        f"evaluation.{name}"
        for name in ("every", "before", "after")
        if getattr(evaluation, name) not in (False, 0)
    ]
    if command == "evaluate":
        reason, off = "the evaluate command", ""
    elif on:
        reason, off = on[0], f", or turn off {' and '.join(on)}"
    else:
        return
    if config.data.eval is None:
        yield f"data.eval: is missing but {reason} needs it; give evaluation data{off}"
    if config.evaluation_response_tokens is None and config.algorithm.name == "kd":
        yield (
            f"evaluation.max_response_tokens: is missing but {reason} needs it without a rollout "
            f"section; set it{off}"
        )


def _parallel(config: Config, command: Command) -> Problems:
    parallel, rollout = config.parallel, config.rollout
    tensor, data = parallel.tensor, parallel.data
    if parallel.sequence and tensor == 1:
        yield (
            "parallel.sequence: is true but parallel.tensor is 1; "
            "set parallel.tensor > 1 or parallel.sequence=false"
        )
    if tensor * data % parallel.expert:
        yield (
            f"parallel.expert: is {parallel.expert}, not a divisor of parallel.tensor x "
            f"parallel.data {tensor * data}; set it to "
            f"{_divisors(tensor * data, min(parallel.expert, tensor * data + 1))}"
        )
    if tensor % config.engine.tensor:
        yield (
            f"rollout.engine.tensor: is {config.engine.tensor}, not a divisor of parallel.tensor "
            f"{tensor}; set it to {' or '.join(sorted({'1', str(tensor)}, key=int))}"
        )
    if config.algorithm.name == "kd":
        key, batch = "train.batch_sequences", config.train.batch_sequences
    else:
        key, batch = "rollout.prompts_per_step", rollout.prompts_per_step if rollout else None
    if batch is not None and batch % data:
        yield (
            f"{key}: is {batch}, not a multiple of parallel.data {data}; "
            f"set it to {-(-batch // data) * data}"
        )
    updates = config.train.updates_per_batch
    if batch is not None and updates > max(1, batch // data):
        yield (
            f"train.updates_per_batch: is {updates} but a replica has {batch // data} of {key}; "
            f"set it to {max(1, batch // data)} or less"
        )
    world = os.environ.get("WORLD_SIZE", "")
    if world.isdigit() and int(world) != config.world_size:
        yield (
            f"parallel: tensor {tensor} x pipeline {parallel.pipeline} x data {data} is "
            f"{config.world_size} but WORLD_SIZE is {world}; start {config.world_size} ranks or "
            "change parallel"
        )


def _lengths(config: Config, command: Command) -> Problems:
    longest, microbatch = config.max_sequence_tokens, config.train.microbatch_tokens
    if microbatch < longest:
        yield (
            f"train.microbatch_tokens: is {microbatch}, below data.max_prompt_tokens + "
            f"rollout.max_response_tokens; set it to {longest} or more"
        )
    if config.max_model_len < config.needed_model_len:
        yield (
            f"rollout.engine.max_model_len: is {config.max_model_len}, below the longest prompt + "
            f"response; set it to {config.needed_model_len} or more, or to null"
        )


def _output(config: Config, command: Command) -> Problems:
    directory = config.output_dir
    existing = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not existing.is_dir():
        yield f"output_dir: {existing} is a file; give a directory"
    elif not os.access(existing, os.W_OK | os.X_OK):
        yield f"output_dir: {existing} is not writable; give another directory"
    elif command == "train":
        yield from room_problems(config, existing, cuda_visible())
    if command == "train":
        yield from output_problems(config)
    if config.resume not in ("never", "auto") and not Path(config.resume).expanduser().is_dir():
        close = difflib.get_close_matches(config.resume, ("never", "auto"), n=1)
        fix = f"did you mean {close[0]}?" if close else "use never, auto or a checkpoint directory"
        yield f"resume: {config.resume} is no checkpoint directory; {fix}"


def _data(config: Config, command: Command) -> Problems:
    files = [("data.train", path) for path in config.data.train] if command == "train" else []
    if config.data.eval is not None and _evaluates(config, command):
        files.append(("data.eval", config.data.eval))
    for key, path in files:
        if not path.is_file():
            yield f"{key}: {path} is no file; give a {' or '.join(DATA_SUFFIXES)} file"
        elif path.suffix not in DATA_SUFFIXES:
            yield f"{key}: {path} has an unknown format; use {' or '.join(DATA_SUFFIXES)}"
        elif path.stat().st_size == 0:
            yield f"{key}: {path} is empty; give a file with at least one row"


def _models(config: Config, command: Command) -> Problems:
    """Every model of the run by itself, then what the pair must share."""
    paths = {"model.student": config.model.student}
    if command == "train" and config.needs_teacher and config.model.teacher is not None:
        paths["model.teacher"] = config.model.teacher
    shapes: dict[str, ModelShape] = {}
    for key, path in paths.items():
        try:
            require_directory(path)
            shapes[key] = read_shape(path)
            check_weights(path, shapes[key].tied)
        except ModelDirError as error:
            yield f"{key}: {error}"
    yield from _cut(config, shapes)
    yield from _experts(config, shapes, command)
    for key, shape in shapes.items():
        yield from _fits(config, key, shape)
        if shape.capped and config.objective.head == "fused":
            yield (
                f"objective.head: is fused but {key} caps its logits (final_logit_softcapping), "
                "which the fused head does not; set it to auto or logits"
            )
    if "model.student" in shapes:
        if config.needs_engine or command == "evaluate":
            yield from _served(config, shapes["model.student"])
    if len(shapes) == len(paths):
        yield from _vocabulary(config, shapes, command)


def _cut(config: Config, shapes: dict[str, ModelShape]) -> Problems:
    """Every model divides over the tensor ranks and over the pipeline's stages."""
    names = {
        "tensor": ("num_attention_heads", "num_key_value_heads", "intermediate_size")
        + ("moe_intermediate_size",),
        "pipeline": ("num_hidden_layers",),
    }
    for by, ranks in (("tensor", config.parallel.tensor), ("pipeline", config.parallel.pipeline)):
        sizes = {
            f"{key} has {name} {size}": size
            for key, shape in shapes.items()
            for name, size in shape.divided().items()
            if name in names[by] and not (name == shape.ffn_name and _whole_experts(config, shape))
        }
        for what, size in sizes.items():
            if size % ranks:
                fix = _divisors(math.gcd(*sizes.values()), ranks)
                yield f"parallel.{by}: is {ranks} but {what}; set it to {fix}"


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
                f"set it to {_divisors(common, layout.expert)}"
            )
    if student and student.experts and layout.tensor > 1 and not layout.sequence:
        if command == "train":
            yield (
                f"parallel.sequence: is false but model.student has {student.experts} experts and "
                f"parallel.tensor is {layout.tensor}; set it to true"
            )


def _divisors(size: int, below: int) -> str:
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
    if not cuda_visible() and shape.head_dim not in CPU_HEAD_DIMS:
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
    """One token map for both models, within both embeddings; top-k within the vocabulary."""
    chosen = config.model.tokenizer or config.model.student
    key = "model.tokenizer" if config.model.tokenizer else "model.student"
    size = min(shape.vocab for shape in shapes.values())
    try:
        file = tokenizer_file(chosen)
        tokens = token_map(file) if file.suffix == ".json" else None
        if "model.teacher" in shapes and config.model.teacher is not None:
            key = "model.teacher"
            _require_same_tokens(file, tokens, tokenizer_file(config.model.teacher))
    except ModelDirError as error:
        yield f"{key}: {error}"
        return
    if tokens is not None:
        end = max(tokens, default=0) + 1
        for model, shape in shapes.items():
            if end > shape.vocab:
                yield (
                    f"{model}: has vocab_size {shape.vocab} but the tokenizer needs {end}; "
                    "use the tokenizer that the model was trained with"
                )
        size = min(size, end)
    yield from _top_k(config, size, command)


def _top_k(config: Config, vocabulary: int, command: Command) -> Problems:
    sizes = {}
    if _evaluates(config, command):
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
