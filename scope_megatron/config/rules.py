"""The rules that join several settings, or settings and files. Each yields `key: what; fix`."""

from __future__ import annotations

import difflib
import math
import os
import re
from pathlib import Path

from scope_megatron.config.rules_algorithm import ALGORITHM_RULES
from scope_megatron.config.rules_data import data_problems
from scope_megatron.config.rules_machine import (
    machine_problems,
    memory_problems,
    package_problems,
    sizes_of,
)
from scope_megatron.config.rules_models import (
    Command,
    Problems,
    divisors,
    model_problems,
)
from scope_megatron.config.rules_output import output_problems, room_problems
from scope_megatron.config.schema import Config
from scope_megatron.config.sections.rollout import RolloutConfig
from scope_megatron.config.sections.verifier import VerifierConfig

# which verifiers read a setting of theirs
_VERIFIERS_READ = {
    "custom": ("custom",),
    "code": ("code",),
    "timeout_s": ("math", "custom"),
    "workers": ("math", "code", "custom"),
}


def setting_problems(config: Config, command: Command) -> list[str]:
    """Rules between settings alone."""
    if command == "data":
        return []
    rules = (
        _machine,
        *ALGORITHM_RULES,
        _verifier,
        _evaluation,
        _profile,
        _trace,
        _parallel,
        _placement,
        _lengths,
    )
    return [problem for rule in rules for problem in rule(config, command)]


def file_problems(config: Config, command: Command) -> list[str]:
    """Rules between settings and what is on disk."""
    rules = (local_problems, model_problems, _memory)
    return [problem for rule in rules for problem in rule(config, command)]


def local_problems(config: Config, command: Command) -> list[str]:
    """Those of them that hold whether or not Hub names have been looked up."""
    rules = (_output, data_problems)
    return [problem for rule in rules for problem in rule(config, command)]


def _machine(config: Config, command: Command) -> Problems:
    sampling = config.needs_engine or command == "evaluate"
    yield from machine_problems(config, sampling)
    yield from package_problems(config, sampling)


def _memory(config: Config, command: Command) -> Problems:
    if (config.needs_engine and command == "train") or command == "evaluate":
        yield from memory_problems(config)


def _verifier(config: Config, command: Command) -> Problems:
    function = config.verifier.custom
    if function is None and config.verifier.name == "custom":
        yield "verifier.custom: is missing but verifier.name custom needs it; give module:function"
    elif function is not None and not re.fullmatch(r"[^\W\d][\w.]*:[^\W\d]\w*", function):
        yield f"verifier.custom: {function} names no function; give module:function"
    name, defaults = config.verifier.name, VerifierConfig()
    for key, readers in _VERIFIERS_READ.items():
        given = getattr(config.verifier, key) != getattr(defaults, key)
        if command == "train" and given and name not in ("auto", *readers):
            yield (
                f"verifier.{key}: is given but verifier.name {name} does not read it; remove it, "
                f"or set verifier.name to auto or {readers[0]}"
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


def _profile(config: Config, command: Command) -> Problems:
    last = config.train.steps
    wrong = [step for step in config.profile.steps if not 1 <= step <= last]
    if wrong:
        yield (
            f"profile.steps: has {wrong[0]} but the run has the steps 1 to {last}; "
            "name some of them, or raise train.steps"
        )


def _trace(config: Config, command: Command) -> Problems:
    given, last = config.logging.trace, config.train.steps
    if given.steps is None:
        if given.every > 1:
            yield (
                f"logging.trace.every: is {given.every} but logging.trace.steps names no step; "
                f"set logging.trace.steps=[1,{last}]"
            )
    elif len(given.steps) != 2:
        yield (
            f"logging.trace.steps: has {len(given.steps)} numbers; give the first and the last "
            f"step, as [1,{last}]"
        )
    elif not 1 <= given.steps[0] <= min(given.steps[1], last):
        yield (
            f"logging.trace.steps: is {given.steps} but the run has the steps 1 to {last}; give "
            "the first and the last step, or raise train.steps"
        )


def _parallel(config: Config, command: Command) -> Problems:
    parallel, rollout = config.parallel, config.rollout
    tensor, data = parallel.tensor, parallel.data
    stage = tensor * parallel.context * data
    if stage % parallel.expert:
        between = " x parallel.context" if parallel.context > 1 else ""
        yield (
            f"parallel.expert: is {parallel.expert}, not a divisor of parallel.tensor{between} x "
            f"parallel.data {stage}; set it to "
            f"{divisors(stage, min(parallel.expert, stage + 1))}"
        )
    if tensor % config.engine.tensor and not config.separate:
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
            f"parallel: {sizes_of(config)} is "
            f"{config.world_size} but WORLD_SIZE is {world}; start {config.world_size} ranks or "
            "change parallel"
        )


def _placement(config: Config, command: Command) -> Problems:
    """Engines on ranks of their own."""
    rollout = config.rollout
    if rollout is None or command != "train":
        return
    if rollout.carry_over:
        yield from _carry_over(config, rollout)
    if not config.separate:
        if rollout.lag:
            yield (
                f"rollout.lag: is {rollout.lag} but rollout.placement is colocated, where nothing "
                "trains while engines sample; set rollout.placement=separate, or rollout.lag=0"
            )
        return
    if config.stale and config.objective.tis_clip is not None and _cuts_sampling(config):
        key = "rollout.lag: is 1" if rollout.lag else f"rollout.carry_over: is {rollout.carry_over}"
        yield (
            f"{key} but rollout.top_p or rollout.top_k renormalises what the engine "
            "samples from, so that ratios to it say nothing; set rollout.top_p=1 and "
            "rollout.top_k=-1, or objective.tis_clip=null"
        )
    if not config.on_policy:
        yield (
            "rollout.placement: is separate but algorithm.name kd samples no responses; "
            "set it to colocated"
        )
    elif rollout.ranks is None:
        yield (
            "rollout.ranks: is missing but rollout.placement separate needs it; "
            "give the number of ranks that only sample"
        )
    elif rollout.ranks % rollout.engine.tensor:
        tensor = rollout.engine.tensor
        yield (
            f"rollout.ranks: is {rollout.ranks}, not a multiple of rollout.engine.tensor {tensor}; "
            f"set it to {-(-rollout.ranks // tensor) * tensor}"
        )
    elif (engines := rollout.ranks // rollout.engine.tensor) > rollout.prompts_per_step:
        yield (
            f"rollout.ranks: makes {engines} engines but rollout.prompts_per_step is "
            f"{rollout.prompts_per_step}; set it to "
            f"{rollout.prompts_per_step * rollout.engine.tensor} or less"
        )


def _carry_over(config: Config, rollout: RolloutConfig) -> Problems:
    """Groups that a step leaves for the next one."""
    key = f"rollout.carry_over: is {rollout.carry_over}"
    mine, updates = rollout.prompts_per_step // config.parallel.data, config.train.updates_per_batch
    if not config.separate:
        yield (
            f"{key} but rollout.placement is colocated, where nothing is sampled while a step "
            "trains; set rollout.placement=separate, or rollout.carry_over=0"
        )
    elif rollout.lag:
        yield (
            f"{key} but rollout.lag is 1, where a step's responses are sampled to the last one "
            "while the step before trains; set rollout.lag=0, or rollout.carry_over=0"
        )
    elif mine == 1:
        yield f"{key} but a replica has one group; raise rollout.prompts_per_step, or set it to 0"
    elif mine and not config.carried_groups:
        yield (
            f"{key}, less than one of a replica's {mine} groups; "
            f"set it to {math.ceil(1000 / mine) / 1000:g} or more, or to 0"
        )
    elif mine - config.carried_groups < updates <= mine:
        most = math.floor((mine - updates) / mine * 1000) / 1000
        yield (
            f"{key} and may leave a replica {mine - config.carried_groups} of {mine} groups, but "
            f"train.updates_per_batch is {updates}; set it to {most:g} or less"
        )


def _cuts_sampling(config: Config) -> bool:
    rollout = config.rollout
    return rollout is not None and (rollout.top_p < 1 or rollout.top_k > 0)


def _lengths(config: Config, command: Command) -> Problems:
    longest, microbatch = config.max_sequence_tokens, config.train.microbatch_tokens
    parallel = config.parallel
    if parallel.context > 1:  # a pack may have to be padded that far
        padded = longest + 2 * parallel.context * (parallel.tensor if parallel.sequence else 1) - 1
        if longest <= microbatch < padded:
            yield (
                f"train.microbatch_tokens: is {microbatch}, but parallel.context "
                f"{parallel.context} pads the longest sequence; set it to {padded} or more"
            )
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
    if command == "data":
        return
    directory = config.output_dir
    existing = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not existing.is_dir():
        yield f"output_dir: {existing} is a file; give a directory"
    elif not os.access(existing, os.W_OK | os.X_OK):
        yield f"output_dir: {existing} is not writable; give another directory"
    elif command == "train":
        yield from room_problems(config, existing, config.platform.device == "cuda")
    if command == "train":
        yield from output_problems(config)
    if config.resume not in ("never", "auto") and not Path(config.resume).expanduser().is_dir():
        close = difflib.get_close_matches(config.resume, ("never", "auto"), n=1)
        fix = f"did you mean {close[0]}?" if close else "use never, auto or a checkpoint directory"
        yield f"resume: {config.resume} is no checkpoint directory; {fix}"
